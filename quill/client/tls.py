"""How connections are secured."""

from __future__ import annotations

import ssl


def tls_context(tls: None = None) -> ssl.SSLContext:
    """What servers are checked with: the certificates that this machine trusts, and the server's name."""
    return ssl.create_default_context()
