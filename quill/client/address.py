"""Where a server is and which protocol it is spoken to with: the base URL of a client, taken apart."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from dataclasses import dataclass
from typing import Literal

from quill.errors import InvalidType, InvalidUsage

WireProtocol = Literal["connect", "grpc", "grpc-web", "quill"]
"""The protocols that a client speaks."""

_SCHEMES: dict[str, tuple[WireProtocol, bool]] = {
    "http": ("connect", False),
    "https": ("connect", True),
    "grpc": ("grpc", False),
    "grpcs": ("grpc", True),
}
"""Which protocol a scheme stands for, and whether it is over TLS."""

_UNIX_SCHEMES: dict[str, WireProtocol] = {"http+unix": "connect", "grpc+unix": "grpc", "unix": "grpc"}
"""The schemes of Unix sockets; ``unix:`` is gRPC's own."""
_DNS_SCHEMES = {"grpc+dns": "grpc", "grpcs+dns": "grpcs"}
"""gRPC with all addresses of a name, and the scheme that has the same host and port."""
_LIST_SCHEME = "grpc+ipv4"
"""gRPC with the addresses of a list."""

_SUPPORTED = (
    "http:// and https:// (Connect), grpc:// and grpcs:// (gRPC), grpc+dns:// and grpcs+dns:// (gRPC to all addresses "
    "of a name), grpc+ipv4:// (gRPC to several addresses), http+unix:/// and unix:/// (Unix sockets)"
)
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:%-]+)*/?")
_MAX_NAME_LENGTH = 253
_MAX_PORT = 65535
_MAX_UNIX_PATH_BYTES = 107
"""What sockaddr_un holds on Linux, without the zero at its end."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address."""

    protocol: WireProtocol
    host: str
    """A name or an IP address; IPv6 without brackets."""
    port: int
    tls: bool
    path: str = ""
    """What stands before ``/service/method`` over HTTP: empty, or with a leading and no trailing slash."""
    unix_path: str | None = None
    """The absolute path of a Unix socket. Host and port are what HTTP says of it: ``localhost``, 80."""
    balanced: bool = False
    """Whether calls are spread over all addresses that the name has, or over the listed ones."""
    more: tuple[str, ...] = ()
    """``host:port`` of the listed addresses behind the first, which ``host`` and ``port`` are."""

    @classmethod
    def parse(cls, base_url: str, protocol: str | None = None) -> Address:
        """Take a base URL apart. Nothing is looked up.

        Args:
            base_url: ``scheme://host[:port][/path]``. Without a port it is 80, and 443 over TLS. For Unix sockets
                ``http+unix:///PATH``, ``grpc+unix:///PATH``, ``unix:/PATH`` or ``unix:///PATH``; the path is the
                socket's, and none can follow it.
            protocol: What to speak whatever the scheme says: ``"connect"``, ``"grpc"``, ``"grpc-web"`` or ``"quill"``,
                on the same host and port.

        Raises:
            InvalidType: One of them is no string.
            InvalidUsage: The URL cannot be used; the message says why, and shows no part that may be a secret.
        """
        if not isinstance(base_url, str):
            raise InvalidType(f"base_url must be a string, got {type(base_url).__name__}")
        scheme, rest = _split_scheme(base_url)
        asked = None if protocol is None else _check_protocol(protocol)
        if scheme in _UNIX_SCHEMES:
            spoken = asked or _UNIX_SCHEMES[scheme]
            path = _check_unix_path(scheme, rest, spoken)
            return cls(spoken, "localhost", 80, tls=False, unix_path=path)
        if scheme == _LIST_SCHEME or scheme in _DNS_SCHEMES:
            if asked not in {None, "grpc"}:
                raise InvalidUsage(f"base_url: {scheme}:// is gRPC's alone, protocol is {asked!r}")
            return _parse_balanced(scheme, rest)
        spoken, tls = _SCHEMES[scheme]
        spoken = asked or spoken
        authority, slash, path = rest.partition("/")
        host, port = _split_authority(authority, default_port=443 if tls else 80)
        return cls(spoken, host, port, tls, _check_path(slash + path, spoken))

    @property
    def authority(self) -> str:
        """``host:port``, with brackets around an IPv6 address; ``localhost`` for a Unix socket."""
        if self.unix_path is not None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def place(self) -> str:
        """What errors call the server."""
        if self.unix_path is not None:
            return f"unix:{self.unix_path}"
        return ",".join((self.authority, *self.more))

    @property
    def grpc_target(self) -> str:
        """The server in the syntax of gRPC (grpc/doc/naming.md)."""
        if self.unix_path is not None:
            return f"unix:{urllib.parse.quote(self.unix_path)}"
        if self.more:
            return f"ipv4:{self.place}"
        return f"dns:///{self.authority}" if self.balanced else self.authority

    @property
    def http_url(self) -> str:
        """What paths are appended to over HTTP."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"

    @property
    def keeps_secrets(self) -> bool:
        """Whether nobody between here and the server can read along: TLS, or no network between."""
        if self.tls:
            return True
        return all(map(_is_this_machine, (self.host, *(place.rpartition(":")[0] for place in self.more))))


def _is_this_machine(host: str) -> bool:
    """Whether no network lies between."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse_balanced(scheme: str, rest: str) -> Address:
    """The address of gRPC that spreads its calls."""
    if scheme == _LIST_SCHEME:
        places = [_split_authority(place, default_port=80) for place in rest.removesuffix("/").split(",")]
        for host, _ in places:
            if not _is_ipv4(host):
                raise InvalidUsage(f"base_url: {scheme}:// takes IPv4 addresses with commas between, got {host!r}")
        (host, port), *others = places
        more = tuple(f"{other}:{its_port}" for other, its_port in others)
        return Address("grpc", host, port, tls=False, balanced=True, more=more)
    _, tls = _SCHEMES[_DNS_SCHEMES[scheme]]
    authority, slash, path = rest.partition("/")
    host, port = _split_authority(authority, default_port=443 if tls else 80)
    _check_path(slash + path, "grpc")
    return Address("grpc", host, port, tls, balanced=True)


def _check_unix_path(scheme: str, rest: str, protocol: WireProtocol) -> str:
    """The absolute path of a Unix socket."""
    if not rest.startswith("/") or rest.endswith("/"):
        raise InvalidUsage(
            f"base_url: a Unix socket is written {scheme}:///path/of/socket, with its absolute path and nothing behind "
            "it: no host, and no path before the service"
        )
    if protocol == "grpc" and "," in rest:
        raise InvalidUsage("base_url: gRPC takes a comma in the path of a socket for the end of the path")
    size = len(rest.encode(errors="surrogateescape"))
    if size > _MAX_UNIX_PATH_BYTES:
        raise InvalidUsage(f"base_url: the path of the socket has {size} bytes, at most {_MAX_UNIX_PATH_BYTES} can be")
    return rest


def _split_scheme(base_url: str) -> tuple[str, str]:
    """The scheme in lower case, and what follows ``://``, which is free of what no URL of a server has."""
    scheme, separator, rest = base_url.partition("://")
    if base_url[:6].lower() == "unix:/":  # gRPC's own, with one slash or three
        scheme, separator, rest = "unix", "://", base_url[5:].removeprefix("//")
    if not separator:
        raise InvalidUsage("base_url has no scheme: write it as http://localhost:8080 or grpc://localhost:50051")
    if scheme.lower() not in _SCHEMES.keys() | _UNIX_SCHEMES.keys() | _DNS_SCHEMES.keys() | {_LIST_SCHEME}:
        shown = repr(scheme) if re.fullmatch(r"[A-Za-z0-9+.-]{1,20}", scheme) else "it has"
        raise InvalidUsage(f"base_url: the scheme {shown} is not supported; supported are {_SUPPORTED}")
    if re.search(r"[\s\x00-\x1f\x7f\\]", base_url):
        raise InvalidUsage("base_url contains a space, a control character or a backslash")
    for mark, name in (("?", "a query (after ?)"), ("#", "a fragment (after #)")):
        if mark in rest:
            raise InvalidUsage(f"base_url contains {name}; it must be scheme://host[:port][/path]")
    return scheme.lower(), rest


def _check_protocol(protocol: str) -> WireProtocol:
    """The protocol that the caller asks for."""
    match protocol:
        case "connect" | "grpc" | "grpc-web" | "quill":
            return protocol
    if not isinstance(protocol, str):
        raise InvalidType(f"protocol must be a string or None, got {type(protocol).__name__}")
    raise InvalidUsage(
        f"protocol {protocol!r} is not supported; supported are 'connect', 'grpc', 'grpc-web' and 'quill'"
    )


def _split_authority(authority: str, default_port: int) -> tuple[str, int]:
    """Host and port."""
    if "@" in authority:
        raise InvalidUsage(
            "base_url contains a user name or password (before @); use set_bearer_token, set_api_key or set_header"
        )
    match = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([^:]*))?", authority)
    if match is None:
        raise InvalidUsage(f"base_url: {authority!r} is no host and port; an IPv6 address stands in brackets")
    host, port_text = match[1], match[2]
    if not host:
        raise InvalidUsage("base_url has no host")
    port = default_port if port_text is None else _check_port(port_text)
    return _check_host(host), port


def _check_port(text: str) -> int:
    """A port number from 1 to 65535."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_PORT))):
        raise InvalidUsage(f"base_url: the port must be a number from 1 to {_MAX_PORT}, got {text[:20]!r}")
    if not 1 <= int(text) <= _MAX_PORT:
        raise InvalidUsage(f"base_url: the port must be from 1 to {_MAX_PORT}, got {text}")
    return int(text)


def _check_host(host: str) -> str:
    """An IP address without brackets, or a name in its ASCII form (RFC 3490)."""
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise InvalidUsage(f"base_url: {host!r} is no IPv6 address") from None
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise InvalidUsage(f"base_url: {host!r} is no host name") from None
    labels = name.removesuffix(".").split(".")
    if len(name) > _MAX_NAME_LENGTH or not all(map(_NAME.fullmatch, labels)):
        raise InvalidUsage(f"base_url: {host!r} is no host name")
    if labels[-1].isdigit() and not _is_ipv4(name):
        raise InvalidUsage(f"base_url: {host!r} is no IPv4 address")
    return name


def _is_ipv4(text: str) -> bool:
    """Whether it is a dotted quad."""
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _check_path(path: str, protocol: WireProtocol) -> str:
    """The path without its trailing slash."""
    if not _PATH.fullmatch(path):
        raise InvalidUsage(f"base_url: {path!r} is no path")
    path = path.rstrip("/")
    if path and protocol == "grpc":
        raise InvalidUsage(f"base_url: gRPC knows no path before the service, got {path!r}")
    return path
