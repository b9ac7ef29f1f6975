"""The headers that a client sends with every call, and the rule for those that are secrets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from quill.client.address import Address
from quill.errors import InvalidType, InvalidUsage, Metadata
from quill.wire.metadata import check_key, check_value

_CREDENTIAL_KEYS = frozenset({"authorization", "cookie", "x-api-key"})

Headers = Mapping[str, str | bytes]
"""Header names, in any case, and their values: bytes where the name ends in ``-bin``, printable ASCII elsewhere."""


class HeaderStore:
    """The headers of a client. Its repr shows names only.

    Reading and writing from several threads is safe: each change and each copy is one operation of a dict or set.
    """

    def __init__(self, headers: Headers | None = None) -> None:
        self._entries: dict[str, tuple[str, str | bytes]] = {}
        """By lower-case key: the name as the caller wrote it, and the value."""
        self._credential_keys = set(_CREDENTIAL_KEYS)
        for name, value in _items(headers):
            self.set(name, value)

    def set(self, name: str, value: str | bytes) -> None:
        """Send this header with every call from now on, in place of one of the same name.

        Raises:
            InvalidType: The name is no string, or the value is not of the type that the name asks for.
            InvalidUsage: The name is reserved or has characters that it must not have, or so has the value. The
                message does not show the value.
        """
        key = check_key(name)
        self._entries[key] = name, check_value(key, value)

    def set_api_key(self, key: str, header_name: str) -> None:
        """Send an API key in the header of this name, and treat that header as a secret."""
        name = check_key(header_name)
        check_value(name, key)
        self._credential_keys.add(name)  # before any call can see the key
        self.set(header_name, key)

    def remove(self, name: str) -> None:
        """Send this header no more; none of that name is no error."""
        if not isinstance(name, str):
            raise InvalidType(f"a header name must be a string, got {type(name).__name__}")
        self._entries.pop(name.lower(), None)

    def visible(self) -> dict[str, str | bytes]:
        """Names as they were set, and values, secrets included."""
        return dict(self._entries.copy().values())

    def for_call(self, extra: Headers | None, address: Address, *, allow_insecure_auth: bool) -> Metadata:
        """The metadata of a call: these headers, replaced and completed by those of the call.

        Raises:
            InvalidType: As ``set``.
            InvalidUsage: As ``set``; or a credential would cross a network in clear text.
        """
        own = {key: value for key, (_, value) in self._entries.copy().items()}
        return self.check(own, extra, address, allow_insecure_auth=allow_insecure_auth)

    def check(self, own: Headers, extra: Headers | None, address: Address, *, allow_insecure_auth: bool) -> Metadata:
        """As ``for_call``, with other headers in place of these; for their secrets the same rule."""
        entries = dict(own)
        for name, value in _items(extra):
            key = check_key(name)
            entries[key] = check_value(key, value)
        secret = self._credential_keys.intersection(entries)
        if secret and not (allow_insecure_auth or address.keeps_secrets):
            raise InvalidUsage(
                f"nothing was sent: {', '.join(sorted(secret))} would go to {address.place} in clear text; use "
                "https:// or grpcs://, or pass allow_insecure_auth=True if the network between is trusted"
            )
        return tuple(entries.items())

    def __repr__(self) -> str:
        return f"HeaderStore({', '.join(sorted(self._entries))})"


def _items(headers: Headers | None) -> Iterable[tuple[str, str | bytes]]:
    """The pairs of a mapping."""
    if headers is None:
        return ()
    if not isinstance(headers, Mapping):
        raise InvalidType(f"headers must be a mapping of names to values, got {type(headers).__name__}")
    return headers.items()
