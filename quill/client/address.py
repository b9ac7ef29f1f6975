"""Where a server is and which protocol it is spoken to with: the base URL of a client, taken apart."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from quill.errors import InvalidType, InvalidUsage

WireProtocol = Literal["connect", "grpc", "grpc-web"]
"""The protocols that a client speaks."""

_SCHEMES: dict[str, tuple[WireProtocol, bool]] = {
    "http": ("connect", False),
    "https": ("connect", True),
    "grpc": ("grpc", False),
    "grpcs": ("grpc", True),
}
"""Which protocol a scheme stands for, and whether it is over TLS."""

_SUPPORTED = "http:// and https:// (Connect), grpc:// and grpcs:// (gRPC)"
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:%-]+)*/?")
_MAX_NAME_LENGTH = 253
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address."""

    protocol: WireProtocol
    host: str
    """A name or an IP address; IPv6 without brackets."""
    port: int
    tls: bool
    path: str = ""
    """What stands before ``/service/method`` over Connect: empty, or with a leading and no trailing slash."""
    unix_path: str | None = None
    """The file of a Unix socket, in place of host and port."""

    @classmethod
    def parse(cls, base_url: str, protocol: str | None = None) -> Address:
        """Take a base URL apart. Nothing is looked up.

        Args:
            base_url: ``scheme://host[:port][/path]``. Without a port it is 80, and 443 over TLS.
            protocol: What to speak whatever the scheme says: ``"connect"``, ``"grpc"`` or ``"grpc-web"``, on the same
                host and port.

        Raises:
            InvalidType: One of them is no string.
            InvalidUsage: The URL cannot be used; the message says why, and shows no part that may be a secret.
        """
        if not isinstance(base_url, str):
            raise InvalidType(f"base_url must be a string, got {type(base_url).__name__}")
        scheme, rest = _split_scheme(base_url)
        spoken, tls = _SCHEMES[scheme]
        if protocol is not None:
            spoken = _check_protocol(protocol)
        authority, slash, path = rest.partition("/")
        host, port = _split_authority(authority, default_port=443 if tls else 80)
        return cls(spoken, host, port, tls, _check_path(slash + path, spoken))

    @property
    def authority(self) -> str:
        """``host:port``, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def http_url(self) -> str:
        """What paths are appended to over HTTP."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"

    @property
    def keeps_secrets(self) -> bool:
        """Whether nobody between here and the server can read along: TLS, or no network between."""
        if self.tls or self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _split_scheme(base_url: str) -> tuple[str, str]:
    """The scheme in lower case, and what follows ``://``, which is free of what no URL of a server has."""
    scheme, separator, rest = base_url.partition("://")
    if not separator:
        raise InvalidUsage("base_url has no scheme: write it as http://localhost:8080 or grpc://localhost:50051")
    if scheme.lower() not in _SCHEMES:
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
        case "connect" | "grpc" | "grpc-web":
            return protocol
    if not isinstance(protocol, str):
        raise InvalidType(f"protocol must be a string or None, got {type(protocol).__name__}")
    raise InvalidUsage(f"protocol {protocol!r} is not supported; supported are 'connect', 'grpc' and 'grpc-web'")


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
