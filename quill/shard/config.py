"""Where a sidecar is, what it speaks, and how patiently it is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from quill.errors import InvalidType, InvalidUsage

Dialect: TypeAlias = Literal["auto", "A", "B", "C"]

_WEBSOCKET_PATH = "/ws/generate"
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarConfig:
    """The configuration of a sidecar client.

    Raises:
        InvalidUsage: A value cannot be used; a URL with a user name or a password is none of them.
        InvalidType: A value is of the wrong type.
    """

    base_url: str = "http://127.0.0.1:9091"
    """``http://HOST:PORT`` or ``https://HOST:PORT``, perhaps with a path before the endpoints."""
    websocket_url: str | None = None
    """``ws://`` or ``wss://``; None derives it from ``base_url``: ``ws://HOST:PORT/ws/generate``."""
    broadcast_endpoint: str = "/broadcast-work"
    pop_result_endpoint: str = "/pop-result"
    health_endpoint: str = "/health"
    dialect: Dialect = "auto"
    """``"auto"`` finds it out from what the sidecar answers."""
    poll_interval_s: float = 0.02
    """The first pause after a poll that found nothing; later ones are longer, each of them jittered down to nothing."""
    max_poll_interval_s: float = 0.5
    """The longest pause."""
    idle_polls_per_s: float = 200.0
    """How many polls that find nothing all generations together may make; about a sixth of a core."""
    request_timeout_s: float = 5.0
    """For one HTTP exchange from beginning to end, and for the WebSocket to open."""
    retry_budget_s: float = 3.0
    """How long connections that are refused, and polls that fail, are tried again."""
    first_token_timeout_ms: float = 60_000
    """How long a generation may wait for its first token, unless its request says otherwise."""
    idle_timeout_ms: float = 30_000
    """How long it may wait for each token after that, unless its request says otherwise."""
    timeout_ms: float = 600_000
    """How long all of it may take, unless its request says otherwise."""
    max_body_bytes: int = 1024 * 1024
    """The largest reply, and the largest message on a WebSocket, that is read."""
    max_queued_pieces: int = 4096
    """How many pieces of text may wait for a slow reader; one more ends its stream."""
    max_queued_characters: int = 1024 * 1024
    """How much text may wait for a slow reader, likewise."""
    max_reordered: int = 256
    """How many numbered results may wait for one that comes before them."""
    reorder_wait_s: float = 1.0
    """How long they wait for it."""
    tombstone_s: float = 10.0
    """How long results of a cancelled generation are still fetched, to be thrown away; of a finished one, a tenth."""
    health_interval_s: float = 2.0
    """How often the sidecar is asked whether it was restarted, while generations run."""
    websocket_limit_s: float = 30.0
    """When a sidecar of dialect C says that a stream is done, whatever it has."""

    def __post_init__(self) -> None:
        _check_url("base_url", self.base_url, ("http", "https"))
        if self.websocket_url is not None:
            _check_url("websocket_url", self.websocket_url, ("ws", "wss"))
        for name in ("broadcast_endpoint", "pop_result_endpoint", "health_endpoint"):
            _check_path(name, getattr(self, name))
        if self.dialect not in get_args(Dialect):
            raise InvalidUsage(f"dialect must be one of {', '.join(get_args(Dialect))}, got {self.dialect!r:.80}")
        for name in _TIMES:
            check_positive(name, getattr(self, name))
        for name in _COUNTS:
            check_count(name, getattr(self, name))

    @property
    def generate_url(self) -> str:
        """The WebSocket, given or derived."""
        if self.websocket_url is not None:
            return self.websocket_url
        return "ws" + self.base_url.removeprefix("http").rstrip("/") + _WEBSOCKET_PATH

    @property
    def place(self) -> str:
        """The sidecar as errors name it."""
        return f"the sidecar at {self.base_url.rstrip('/')}"

    def url(self, endpoint: str) -> str:
        """The address of an endpoint."""
        return self.base_url.rstrip("/") + endpoint


_TIMES = (
    "poll_interval_s",
    "max_poll_interval_s",
    "idle_polls_per_s",
    "request_timeout_s",
    "retry_budget_s",
    "first_token_timeout_ms",
    "idle_timeout_ms",
    "timeout_ms",
    "reorder_wait_s",
    "tombstone_s",
    "health_interval_s",
    "websocket_limit_s",
)
_COUNTS = ("max_body_bytes", "max_queued_pieces", "max_queued_characters", "max_reordered")


def check_positive(name: str, value: object) -> None:
    """A number above 0 that is finite.

    Raises:
        InvalidType: It is no number.
        InvalidUsage: It is not finite, or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidType(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise InvalidUsage(f"{name} must be finite and above 0, got {value}")


def check_count(name: str, value: object) -> None:
    """A whole number, at least 1.

    Raises:
        InvalidType: It is no whole number.
        InvalidUsage: It is less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidType(f"{name} must be a whole number, got {type(value).__name__}")
    if value < 1:
        raise InvalidUsage(f"{name} must be at least 1, got {value}")


def _check_url(name: str, url: object, schemes: tuple[str, ...]) -> None:
    if not isinstance(url, str):
        raise InvalidType(f"{name} must be a string, got {type(url).__name__}")
    if "@" in url:  # before anything that shows it
        raise InvalidUsage(f"{name} must not hold a user name, a password or any @: the sidecar takes no credentials")
    try:
        parts = urlsplit(url)
        usable = (
            bool(parts.hostname)
            and bool(parts.netloc.encode("idna"))
            and (parts.port is None or 0 < parts.port <= _MAX_PORT)
        )
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url or not url.startswith(tuple(f"{one}://" for one in schemes)):
        forms = " or ".join(f"{one}://HOST:PORT" for one in schemes)
        raise InvalidUsage(f"{name} must be {forms}, got {url!r:.120}")
    if parts.query or parts.fragment:
        raise InvalidUsage(f"{name} must have no query and no fragment")


def _check_path(name: str, path: object) -> None:
    if not isinstance(path, str):
        raise InvalidType(f"{name} must be a string, got {type(path).__name__}")
    if not path.startswith("/") or not path.isprintable() or set(path) & set(" ?#"):
        raise InvalidUsage(f"{name} must be a path that begins with /, got {path!r:.120}")
