"""What X.509 certificates say: until when they are valid, and whom they name.

A peer is described as grpcio describes it in ``ServicerContext.auth_context()``, on both ports.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
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

_SEQUENCE, _UTC_TIME, _VERSION = 0x30, 0x17, 0xA0


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


def validity(pem: str) -> tuple[datetime, datetime]:
    """From when until when the first certificate of a PEM text is valid. The ssl module tells it of peers only.

    Source: RFC 5280, section 4.1: Certificate → tbsCertificate → [version], serialNumber, signature, issuer, validity.

    Raises:
        ValueError: The text holds no certificate.
    """
    end = "-----END CERTIFICATE-----"
    start = pem.find("-----BEGIN CERTIFICATE-----")
    stop = pem.find(end, start)
    if start < 0 or stop < 0:
        raise ValueError("no certificate")
    try:
        _, certificate, _ = _element(ssl.PEM_cert_to_DER_cert(pem[start : stop + len(end)]))
        _, fields, _ = _element(certificate)
        kind, _, rest = _element(fields)
        if kind == _VERSION:
            _, _, rest = _element(rest)
        for _ in range(2):
            _, _, rest = _element(rest)
        kind, period, _ = _element(rest)
        first_kind, first, rest = _element(period)
        last_kind, last, _ = _element(rest)
    except IndexError:
        raise ValueError("no certificate") from None
    if kind != _SEQUENCE:
        raise ValueError("no certificate")
    return _time(first_kind, first), _time(last_kind, last)


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """The tag and content of the first element of DER, and what follows it."""
    size, at = data[1], 2
    if size & 0x80:
        at += size & 0x7F
        size = int.from_bytes(data[2:at], "big")
    return data[0], data[at : at + size], data[at + size :]


def _time(kind: int, content: bytes) -> datetime:
    """A UTCTime (years 1950 to 2049) or a GeneralizedTime."""
    text = content.decode("ascii")
    if kind == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
