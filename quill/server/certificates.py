"""What X.509 certificates say: whom they name.

A peer is described as grpcio describes it in ``ServicerContext.auth_context()``, on both ports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

AuthContext: TypeAlias = Mapping[str, Iterable[bytes]]
"""Properties of a connection, as ``ServicerContext.auth_context()`` has them. Empty without TLS."""

ASGI_EXTENSION = "quill.auth_context"
"""The ASGI extension in which a host tells the AuthContext of a request's connection."""

NAME_KINDS: Mapping[str, str] = {
    "DNS": "peer_dns",
    "URI": "peer_uri",
    "IP": "peer_ip",
    "EMAIL": "peer_email",
    "CN": "x509_common_name",
}
"""Kinds of names in a certificate, the first four of them subject alternative names: where an AuthContext has them."""

_SAN_KINDS = {"DNS": "DNS", "URI": "URI", "IP Address": "IP", "email": "EMAIL"}
"""What the ssl module calls them."""


def names(peer: AuthContext) -> frozenset[str]:
    """The names of a peer's certificate, each with its kind: ``URI:spiffe://prod/agent``, ``CN:alice``."""
    return frozenset(
        f"{kind}:{value.decode(errors='replace')}" for kind, key in NAME_KINDS.items() for value in peer.get(key, ())
    )


def auth_context(ssl_object: Any) -> AuthContext:
    """The properties of a TLS connection of the ssl module; its peer's certificate was verified by then.

    Args:
        ssl_object: The ``ssl.SSLObject``; None for a connection without TLS.
    """
    if ssl_object is None:
        return {}
    certificate = ssl_object.getpeercert() or {}
    found: dict[str, list[bytes]] = {"transport_security_type": [b"ssl"]}
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in _SAN_KINDS:
            found.setdefault("x509_subject_alternative_name", []).append(value.encode())
            found.setdefault(NAME_KINDS[_SAN_KINDS[kind]], []).append(value.encode())
    for part in certificate.get("subject", ()):
        found.setdefault("x509_common_name", []).extend(value.encode() for key, value in part if key == "commonName")
    return found
