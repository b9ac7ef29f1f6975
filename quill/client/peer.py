"""What the connections of a client to one server know of it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from quill.client import faults
from quill.client.address import Address
from quill.client.tls import ClientTls, renewed, tls_context
from quill.errors import Unavailable
from quill.watched import Watched


@dataclass(slots=True)
class Peer:
    """A server. Threads share it."""

    address: Address
    tls: ClientTls | None = None
    contexts: Watched[ssl.SSLContext] | None = None
    """The TLS context for a new connection; None in clear text."""
    answered: bool = False
    """Whether anything has ever come from it."""

    @classmethod
    def of(cls, address: Address, tls: ClientTls | None, versions: list[str]) -> Peer:
        """A server that is asked for one of these versions of HTTP (ALPN), where it speaks TLS."""

        def context() -> ssl.SSLContext:
            made = tls_context(tls)
            made.set_alpn_protocols(versions)
            return made

        return cls(address, tls, renewed(tls, context) if address.tls else None)

    def context(self) -> ssl.SSLContext | None:
        """The TLS context for a new connection; None in clear text.

        Raises:
            InvalidUsage: The certificates cannot be used.
        """
        return None if self.contexts is None else self.contexts.get()

    def lost(self) -> Unavailable:
        """The connection ended before the call did."""
        return faults.lost(self.address) if self.answered else faults.hung_up(self.address, self.tls)

    def insecure(self, error: OSError) -> Unavailable:
        """TLS failed."""
        return faults.insecure(self.address, error, self.tls)
