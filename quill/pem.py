"""Certificates and keys in PEM files: read and checked, with errors that name the file and nothing of its content."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from quill.errors import InvalidUsage

_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_CERTIFICATE_END = "-----END CERTIFICATE-----"
_KEY = "PRIVATE KEY-----"
_SEQUENCE, _UTC_TIME, _VERSION = 0x30, 0x17, 0xA0


def read_pem(path: Path, what: Literal["certificate", "key", "client CA", "CA"]) -> str:
    """The text of a PEM file with at least one block of its kind.

    Raises:
        InvalidUsage: There is no such file, it cannot be read, or it holds no such block.
    """
    try:
        text = path.read_text("ascii", errors="replace")
    except OSError as error:
        raise InvalidUsage(f"cannot read the TLS {what} {path}: {error.strerror}") from None
    if (_KEY if what == "key" else _CERTIFICATE) not in text:
        raise InvalidUsage(f"the TLS {what} {path} is no PEM file of a {'private key' if what == 'key' else what}")
    return text


def load_chain(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Give a context its own certificate and key.

    Raises:
        InvalidUsage: The key is not the certificate's, has a passphrase, or one of the files is damaged.
    """
    try:
        # Without a password OpenSSL would ask for it on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidUsage(f"the TLS key {key} is not that of the certificate {cert}") from None
        raise InvalidUsage(
            f"the TLS certificate {cert} or its key {key} is damaged, or the key has a passphrase"
        ) from None
    except OSError as error:
        raise InvalidUsage(f"cannot read {cert} or {key}: {error.strerror}") from None


def check_validity(path: Path, pem: str) -> None:
    """Whether the first certificate of a file is valid now.

    Raises:
        InvalidUsage: It has expired, is not valid yet, or is damaged.
    """
    try:
        first, last = validity(pem)
    except ValueError:
        raise InvalidUsage(f"the TLS certificate {path} is damaged") from None
    now = datetime.now(UTC)
    if now > last:
        raise InvalidUsage(f"the TLS certificate {path} expired at {last:%Y-%m-%d %H:%M:%S} UTC")
    if now < first:
        raise InvalidUsage(f"the TLS certificate {path} is not valid before {first:%Y-%m-%d %H:%M:%S} UTC")


def validity(pem: str) -> tuple[datetime, datetime]:
    """From when until when the first certificate of a PEM text is valid. The ssl module tells it of peers only.

    Source: RFC 5280, section 4.1: Certificate → tbsCertificate → [version], serialNumber, signature, issuer, validity.

    Raises:
        ValueError: The text holds no certificate.
    """
    start = pem.find(_CERTIFICATE)
    stop = pem.find(_CERTIFICATE_END, start)
    if start < 0 or stop < 0:
        raise ValueError("no certificate")
    try:
        _, certificate, _ = _element(ssl.PEM_cert_to_DER_cert(pem[start : stop + len(_CERTIFICATE_END)]))
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
