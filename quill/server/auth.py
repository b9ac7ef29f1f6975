"""Who makes a call and whether they may: credentials in headers, names in certificates, the file of keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

import grpc

from quill.errors import InvalidUsage, PermissionDenied, Unauthenticated
from quill.principal import ANONYMOUS, Principal
from quill.server.certificates import AuthContext, names
from quill.server.health import SERVICE as HEALTH
from quill.server.keys import Grant, KeyTable, load_keys
from quill.server.tls import EVERY_OTHER
from quill.server.watched import Watched
from quill.wire.metadata import check_key

_BEARER = "authorization"


@dataclass(frozen=True, slots=True)
class Auth:
    """Credentials are asked for, and every method is closed to those whom the file does not allow it.

    Health stays open: grpc.health.v1, /healthz and /readyz say the status and nothing else.

    Raises:
        InvalidUsage: A header is no name that metadata may have, or there is none.
    """

    keys_file: str | PathLike[str]
    """TOML: see `quill.server.keys`. It is loaded anew within a second when it changes; a file that cannot be used
    leaves the old keys in place."""
    headers: tuple[str, ...] = (_BEARER, "x-api-key")
    """Where secrets come from: ``authorization`` as ``Bearer SECRET``, any other as the bare secret."""

    def __post_init__(self) -> None:
        if not self.headers:
            raise InvalidUsage("auth needs a header that carries the secret")
        for name in self.headers:
            if check_key(name) != name or name.endswith("-bin"):
                raise InvalidUsage(f"the header {name!r} must be in lower case, and not end in '-bin'")


class Authenticator:
    """Finds the principal of a call.

    Args:
        auth: What is asked for; None for no credentials.
        identities: Who the clients' certificates are; None where they are nobody.

    Raises:
        InvalidUsage: The keys file is missing or wrong.
    """

    def __init__(self, auth: Auth | None, identities: Mapping[str, str] | None) -> None:
        self._identities = None if identities is None else dict(identities)
        self._headers = () if auth is None else auth.headers
        self._table = None if auth is None else _watched(Path(auth.keys_file))
        self._is_open = auth is None and identities is None

    @property
    def reads_certificates(self) -> bool:
        """Whether the connection decides: then ``AuthContext`` must be given."""
        return self._identities is not None

    def authenticate(self, details: grpc.HandlerCallDetails, peer: AuthContext) -> Principal:
        """The principal of a call that may be made.

        Args:
            details: The method and the metadata.
            peer: What is known of the connection.

        Raises:
            Unauthenticated: There are no credentials, or they are wrong or have expired.
            PermissionDenied: They are good, and not for this method.
        """
        if self._is_open or is_health(details.method):
            return ANONYMOUS
        table = None if self._table is None else self._table.get()
        grant = self._grant(table, details, peer)
        if grant is None:
            raise _unauthenticated(f"this server asks for credentials{self._where()}")
        if not grant.allows(details.method):
            raise PermissionDenied(f"{grant.name!r} may not call {details.method[1:200]}")
        return Principal(grant.name)

    def _grant(self, table: KeyTable | None, details: grpc.HandlerCallDetails, peer: AuthContext) -> Grant | None:
        """By the secret where one is given, else by the certificate."""
        if table is not None and (secret := self._secret(details)) is not None:
            return _by_secret(table, secret)
        if (name := self._named(peer)) is None:
            return None
        return Grant(name, ("*",)) if table is None else table.identities.get(name, Grant(name, ()))

    def _secret(self, details: grpc.HandlerCallDetails) -> str | None:
        """The one secret of a call."""
        given = [(key, value) for key, value in details.invocation_metadata or () if key in self._headers]
        if not given:
            return None
        if len(given) > 1:
            raise _unauthenticated("the call carries several credentials: send one")
        key, value = given[0]
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        if key != _BEARER:
            return text
        scheme, _, secret = text.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise _unauthenticated("the authorization header must be: Bearer SECRET")
        return secret.strip()

    def _named(self, peer: AuthContext) -> str | None:
        """The principal of a certificate; None without one, and where its names lead to several."""
        if self._identities is None or not peer:
            return None
        found = {self._identities[name] for name in names(peer) if name in self._identities}
        if not found:
            return self._identities.get(EVERY_OTHER)
        return found.pop() if len(found) == 1 else None

    def _where(self) -> str:
        shown = [f"{name}: Bearer SECRET" if name == _BEARER else f"{name}: SECRET" for name in self._headers]
        if self._identities is not None:
            shown.append("a client certificate that it knows")
        return f": {' or '.join(shown)}"


def is_health(path: str) -> bool:
    """Whether a method is one of the health service, which is open to everybody."""
    return path.startswith(f"/{HEALTH}/")


def _watched(path: Path) -> Watched[KeyTable]:
    return Watched([path], lambda: load_keys(path))


def _by_secret(table: KeyTable, secret: str) -> Grant:
    key = table.find(secret)
    if key is None:
        raise _unauthenticated("the credentials are not valid")
    if key.expires is not None and datetime.now(UTC) >= key.expires:
        # Whoever holds an old secret need not learn whose it was.
        raise _unauthenticated("the credentials have expired")
    return key


def _unauthenticated(message: str) -> Unauthenticated:
    return Unauthenticated(message, metadata=(("www-authenticate", 'Bearer realm="quill"'),))
