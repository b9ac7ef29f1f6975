"""The file of who may call what: hashes of secrets, names, allowed methods.

    [[key]]
    name = "team-a"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    allow = ["inference.v1.LLMService/*"]
    expires = 2027-01-01T00:00:00Z        # optional

    [[identity]]                           # what the principal of a client certificate may call
    name = "agent"
    allow = ["*"]

The secrets are 256 random bits each, so that one round of SHA-256 protects them: nobody can guess one, and a slow
hash, made to slow the guessing of passwords that people choose, would only make each call slow. Two keys may have one
name, so that a secret can be replaced without a gap.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from quill.errors import InvalidUsage

_PREFIX = "quill_"
"""Of secrets, so that scanners find one that was published by mistake."""
_SECRET_BYTES = 32
_PATTERN = re.compile(r"\*|[A-Za-z_][\w.]*/(\*|[A-Za-z_]\w*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"key": ("name", "sha256", "allow", "expires"), "identity": ("name", "allow")}


@dataclass(frozen=True, slots=True)
class Grant:
    """What a principal may call."""

    name: str
    """The principal."""
    allow: tuple[str, ...]
    """Patterns: ``*``, ``package.Service/*`` or ``package.Service/Method``."""

    def allows(self, path: str) -> bool:
        """Whether ``/package.Service/Method`` is allowed."""
        service = path[1:].rpartition("/")[0]
        return any(pattern in ("*", f"{service}/*", path[1:]) for pattern in self.allow)


@dataclass(frozen=True, slots=True)
class Key(Grant):
    """A grant for whoever has the secret."""

    digest: bytes = field(repr=False)
    """SHA-256 of the secret."""
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeyTable:
    """All that the file says."""

    keys: tuple[Key, ...]
    identities: Mapping[str, Grant]
    """By name of the principal."""

    def find(self, secret: str) -> Key | None:
        """The key of a secret, expired or not. Takes the same time whether and where there is one."""
        digest = hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def new_secret() -> tuple[str, str]:
    """A fresh secret, and the SHA-256 of it for the file."""
    secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    return secret, hashlib.sha256(secret.encode()).hexdigest()


def check_name(name: object) -> str:
    """The name of a principal.

    Raises:
        InvalidUsage: It is no text, is empty or has characters that cannot be printed.
    """
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InvalidUsage(f"a name must be printable text, got {name!r}")
    return name


def check_pattern(pattern: object) -> str:
    """A pattern of methods.

    Raises:
        InvalidUsage: It has another form.
    """
    if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
        raise InvalidUsage(f'allow takes "package.Service/Method", "package.Service/*" and "*", got {pattern!r}')
    return pattern


def load_keys(path: Path) -> KeyTable:
    """Read the file.

    Raises:
        InvalidUsage: It cannot be read, or something in it is wrong; the message says where, and quotes no hash.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidUsage(f"cannot read the keys file {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        # The line of the text itself might be a secret that was put there by mistake.
        place = re.search(r"at line \d+", str(error))
        raise InvalidUsage(f"the keys file {path} is no TOML{f' {place[0]}' if place else ''}") from None
    for table in document:
        if table not in _FIELDS or not isinstance(document[table], list):
            raise InvalidUsage(
                f"the keys file {path} has {_shown(table)}: it takes the tables [[key]] and [[identity]]"
            )
    keys = tuple(_each(path, "key", document, _key))
    identities = _each(path, "identity", document, _grant)
    if len({key.digest for key in keys}) < len(keys):
        raise InvalidUsage(f"the keys file {path} has one sha256 twice")
    if len({grant.name for grant in identities}) < len(identities):
        raise InvalidUsage(f"the keys file {path} has one identity twice")
    return KeyTable(keys, {grant.name: grant for grant in identities})


def _each(path: Path, table: str, document: Mapping[str, Any], make: Any) -> list[Any]:
    made = []
    for number, entry in enumerate(document.get(table, []), 1):
        try:
            made.append(make(_checked(entry, _FIELDS[table])))
        except InvalidUsage as error:
            raise InvalidUsage(f"the keys file {path}, [[{table}]] number {number}: {error}") from None
    return made


def _checked(entry: object, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise InvalidUsage("it is no table")
    if unknown := sorted(set(entry) - set(known)):
        raise InvalidUsage(f"it has {_shown(unknown[0])}; there are: {', '.join(known)}")
    return entry


def _shown(name: str) -> str:
    """A name that the file should not have, where it looks like a slip; it might be a secret in a wrong place."""
    known = {*_FIELDS, *(name for names in _FIELDS.values() for name in names)}
    return repr(name) if difflib.get_close_matches(name, known) else "a name that is not known"


def _grant(entry: Mapping[str, Any]) -> Grant:
    allow = entry.get("allow")
    if not isinstance(allow, list) or not allow:
        raise InvalidUsage('allow must be a list of patterns, as ["inference.v1.LLMService/*"]')
    return Grant(check_name(entry.get("name")), tuple(map(check_pattern, allow)))


def _key(entry: Mapping[str, Any]) -> Key:
    grant = _grant(entry)
    sha256 = entry.get("sha256")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise InvalidUsage("sha256 must be 64 hexadecimal digits in lower case, as `quill key new NAME` prints them")
    return Key(grant.name, grant.allow, bytes.fromhex(sha256), _moment(entry.get("expires")))


def _moment(value: object) -> datetime | None:
    """A moment with its time zone; a date means its beginning in UTC."""
    if value is None:
        return None
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time(), UTC)
    raise InvalidUsage("expires must be a date, or a date and time with its zone: 2027-01-01T00:00:00Z")
