"""TLS as a client speaks it: whom it trusts, and the certificate that it shows."""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from quill.errors import InvalidType, InvalidUsage
from quill.pem import check_validity, load_chain, read_pem
from quill.watched import Watched

_log = logging.getLogger("quill.client")

_HASH_LINK = re.compile(r"[0-9a-f]{8}\.\d+")
"""The names by which OpenSSL finds an authority in a folder."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """Whom a client trusts, and the certificate that it shows to servers that ask for one.

    The server's certificate and its name are always verified; TLS is 1.2 or newer. Making one reads nothing: the
    client reads the files with its first call, and looks whether they have changed when connections are made, once a
    second at most. So renewed files need no restart; files that cannot be used then leave the old ones in place and
    one line in the log "quill.client".

    Raises:
        InvalidUsage: Only one of ``cert`` and ``key`` is given.
        InvalidType: A value is no path, or no bytes where bytes may be.
    """

    ca: str | PathLike[str] | bytes | None = field(default=None, repr=False)
    """Who signs servers' certificates: the path of a PEM file, or PEM bytes. None: those whom this machine trusts."""
    cert: str | PathLike[str] | None = None
    """PEM file: the client's certificate, and after it those that lead to the root."""
    key: str | PathLike[str] | None = None
    """PEM file: its private key, without a passphrase."""

    def __post_init__(self) -> None:
        if self.ca is not None and not isinstance(self.ca, (str, bytes, PathLike)):
            raise InvalidType(f"ca must be a path or PEM bytes, got {type(self.ca).__name__}")
        for name, value in (("cert", self.cert), ("key", self.key)):
            if value is not None and not isinstance(value, (str, PathLike)):
                raise InvalidType(f"{name} must be the path of a PEM file, got {type(value).__name__}")
        if isinstance(self.ca, str) and "-----BEGIN" in self.ca:
            raise InvalidUsage("ca is PEM text where a path is expected; pass PEM as bytes")
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise InvalidUsage(f"tls has {given} and no {missing}; a client certificate needs both")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(Path(part) for part in (self.ca, self.cert, self.key) if isinstance(part, (str, PathLike)))


def tls_context(tls: ClientTls | None) -> ssl.SSLContext:
    """A context for connections, made of the files as they are now. Protocols for ALPN are the caller's matter.

    Raises:
        InvalidUsage: A file cannot be read or is damaged, the key is not the certificate's, or the certificate is
            not valid now. The message names the file and nothing of its content.
    """
    if tls is None or tls.ca is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _trust(context, tls.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls is not None and tls.cert is not None and tls.key is not None:
        cert, key = Path(tls.cert), Path(tls.key)
        pem = read_pem(cert, "certificate")
        read_pem(key, "key")
        check_validity(cert, pem)
        load_chain(context, cert, key)
    return context


def pem_parts(tls: ClientTls | None) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Roots, key and certificate for libraries that take PEM; roots are None for the library's own.

    Raises:
        InvalidUsage: As ``tls_context``.
    """
    if tls is None:
        return system_roots(), None, None
    tls_context(tls)  # checks everything, with errors that name the file
    match tls.ca:
        case None:
            roots = system_roots()
        case bytes():
            roots = tls.ca
        case _:
            roots = read_pem(Path(tls.ca), "CA").encode()
    if tls.cert is None or tls.key is None:
        return roots, None, None
    return roots, read_pem(Path(tls.key), "key").encode(), read_pem(Path(tls.cert), "certificate").encode()


def system_roots() -> bytes | None:
    """The authorities that this machine trusts, as OpenSSL finds them (``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` too).

    None where there are none.
    """
    return b"".join(_system_files()) or None


def names_in(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """The names that a certificate is for, as ``getpeercert`` tells them."""
    return tuple(value for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "IP Address"})


def renewed(tls: ClientTls | None, make: Callable[[], T]) -> Watched[T]:
    """What ``make`` makes of the files, and makes anew when they have changed.

    Raises:
        InvalidUsage: As ``tls_context``.
    """
    return Watched(() if tls is None else tls.paths, make, _log)


def _trust(context: ssl.SSLContext, ca: str | PathLike[str] | bytes) -> None:
    if isinstance(ca, bytes):
        name, text = "given as bytes", ca.decode("ascii", errors="replace")
    else:
        name, text = str(ca), read_pem(Path(ca), "CA")
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise InvalidUsage(f"the TLS CA {name} is no PEM certificate")
    try:
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        raise InvalidUsage(f"the TLS CA {name} is damaged") from None


def _system_files() -> Iterator[bytes]:
    paths = ssl.get_default_verify_paths()
    if paths.cafile:  # None where there is no such file
        files = [Path(paths.cafile)]
    elif paths.capath:
        files = sorted(path for path in Path(paths.capath).iterdir() if _HASH_LINK.fullmatch(path.name))
    else:
        files = []
    for path in files:
        with contextlib.suppress(OSError):  # a link that leads nowhere, a file that is not for us: so does OpenSSL
            yield path.read_bytes() + b"\n"
