"""TLS of both ports: certificates from files, loaded anew when the files change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import grpc

from quill.errors import InvalidUsage
from quill.pem import check_validity, load_chain, read_pem
from quill.server.certificates import NAME_KINDS
from quill.watched import Watched

_log = logging.getLogger("quill.server")

EVERY_OTHER = "*"
"""As a key of ``Tls.identities``: every certificate that none of the other keys names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS 1.2 or newer on both ports.

    The files are looked at when connections come in, once a second at most: new certificates need no restart, open
    connections and their streams go on, and files that cannot be used leave the old certificates in place.

    Raises:
        InvalidUsage: Identities are given without ``client_ca``, or a name in them has no kind.
    """

    cert: str | PathLike[str]
    """PEM file: the server's certificate, and after it those that lead to the root."""
    key: str | PathLike[str]
    """PEM file: its private key, without a passphrase."""
    client_ca: str | PathLike[str] | None = None
    """PEM file: who signs the certificates of clients. Connections without such a certificate are refused."""
    identities: Mapping[str, str] | None = None
    """Who the clients are: names in certificates (``"URI:spiffe://prod/agent"``, ``"DNS:batch.example"``, ``"IP:…"``,
    ``"EMAIL:…"``, ``"CN:…"``) to the names of principals. Calls by another certificate are refused, unless they carry
    credentials of their own or ``"*"`` names a principal for them. None: certificates open connections and say
    nothing about who calls."""

    def __post_init__(self) -> None:
        if self.identities is None:
            return
        if self.client_ca is None:
            raise InvalidUsage("tls identities need client_ca: who signs the certificates of clients?")
        for name in self.identities:
            kind, _, rest = name.partition(":")
            if name != EVERY_OTHER and (kind not in NAME_KINDS or not rest):
                kinds = ", ".join(f"{kind}:" for kind in NAME_KINDS)
                raise InvalidUsage(f"the identity {name!r} must begin with its kind, one of {kinds}, or be '*'")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The files in the forms that the two ports need."""

    context: ssl.SSLContext
    configuration: grpc.ServerCertificateConfiguration


class TlsFiles:
    """The certificates of a server, as its files have them now.

    Raises:
        InvalidUsage: A file is missing or wrong, the key is not the certificate's, or the certificate is not valid
            now. The message names the file and nothing of its content.
    """

    def __init__(self, tls: Tls) -> None:
        self._cert, self._key = Path(tls.cert), Path(tls.key)
        self._client_ca = None if tls.client_ca is None else Path(tls.client_ca)
        paths = [self._cert, self._key] + ([self._client_ca] if self._client_ca else [])
        self._loaded = Watched(paths, self._load, _log)

    def http_context(self) -> ssl.SSLContext:
        """A context for listening sockets whose every new connection uses the certificates of that moment."""
        context = _Current(ssl.PROTOCOL_TLS_SERVER)
        context.loaded = self._loaded
        return context

    def context(self) -> ssl.SSLContext:
        """A context for one connection, with the certificates of this moment."""
        return self._loaded.get().context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials for a gRPC port, likewise."""
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.get().configuration,
            lambda: self._loaded.get().configuration,
            require_client_authentication=self._client_ca is not None,
        )

    def _load(self) -> _Loaded:
        cert, key = read_pem(self._cert, "certificate"), read_pem(self._key, "key")
        client_ca = None if self._client_ca is None else read_pem(self._client_ca, "client CA")
        check_validity(self._cert, cert)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        load_chain(context, self._cert, self._key)
        if client_ca is not None:
            self._require_clients(context, client_ca)
        return _Loaded(
            context,
            grpc.ssl_server_certificate_configuration(
                [(key.encode(), cert.encode())], None if client_ca is None else client_ca.encode()
            ),
        )

    def _require_clients(self, context: ssl.SSLContext, client_ca: str) -> None:
        try:
            context.load_verify_locations(cadata=client_ca)
        except ssl.SSLError:
            raise InvalidUsage(f"the TLS client CA {self._client_ca} is damaged") from None
        context.verify_mode = ssl.CERT_REQUIRED


class _Current(ssl.SSLContext):
    """Stands where asyncio wants one context for all connections, and gives each the newest."""

    loaded: Watched[_Loaded]

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """What asyncio calls for each connection."""
        return self.loaded.get().context.wrap_bio(*arguments, **options)
