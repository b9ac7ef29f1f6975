"""gRPC channels: where they lead, what they are set to, and how they follow certificates that are renewed."""

from __future__ import annotations

import json
import os
import threading
import weakref
from typing import Any, Generic, Protocol, TypeVar, cast

import grpc

from quill.client.address import Address
from quill.client.options import ClientOptions, user_agent
from quill.client.tls import pem_parts, renewed

_KEEPALIVE_TIME_MS = 30_000
_PINGS_WITHOUT_DATA = 2
_FIRST_RECONNECT_MS = 100
_SLOWEST_RECONNECT_MS = 1_000
_CONNECT_TIMEOUT_MS = 10_000
_RESOLVE_INTERVAL_MS = 5_000

_MAX_KEPT_METHODS = 1024

_BALANCED = json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}})
"""Calls go round all addresses whose server says SERVING of itself as a whole, or has no health service."""

C_co = TypeVar("C_co", covariant=True)
C = TypeVar("C")


class Open(Protocol[C_co]):
    """``insecure_channel`` of grpc or grpc.aio."""

    def __call__(self, target: str, options: Any = None) -> C_co:
        """A channel in clear text."""


class OpenSecure(Protocol[C_co]):
    """``secure_channel`` of grpc or grpc.aio."""

    def __call__(self, target: str, credentials: grpc.ChannelCredentials, options: Any = None) -> C_co:
        """A channel over TLS."""


class Channels(Generic[C]):
    """The channel to a server; another one for new calls when the files of its certificates have changed.

    A channel that was replaced lives on for as long as a call holds it.

    Raises:
        InvalidUsage: The certificates cannot be used.
    """

    def __init__(self, address: Address, options: ClientOptions, insecure: Open[C], secure: OpenSecure[C]) -> None:
        self._address = address
        self._options = options
        self._insecure = insecure
        self._secure = secure
        self._lock = threading.Lock()
        self._living: weakref.WeakSet[Any] = weakref.WeakSet()
        self._current = renewed(options.tls, self._open)
        self._kept: tuple[C | None, dict[str, Any]] = (None, {})
        """Callables of a channel, by path: making one costs more than looking for it."""

    def current(self) -> C:
        """The channel for a new call, which holds it until it ends."""
        return self._current.get()

    def unary_unary(self, channel: C, path: str) -> Any:
        """A channel's callable for a unary method. It does not hold the channel."""
        kept = self._kept
        if kept[0] is not channel:
            kept = self._kept = (channel, {})
        method = kept[1].get(path)
        if method is None:
            method = cast("Any", channel).unary_unary(path)
            if len(kept[1]) < _MAX_KEPT_METHODS:
                kept[1][path] = method
        return method

    def living(self) -> list[C]:
        """All channels that somebody holds."""
        with self._lock:
            return list(self._living)

    def _open(self) -> C:
        arguments = channel_options(self._address, self._options)
        if self._address.tls:
            channel = self._secure(self._address.grpc_target, _credentials(self._options), options=arguments)
        else:
            channel = self._insecure(self._address.grpc_target, options=arguments)
        with self._lock:
            self._living.add(channel)
        return channel


def channel_options(address: Address, options: ClientOptions) -> list[tuple[str, Any]]:
    """Channel arguments (grpc/impl/channel_arg_names.h).

    No retry policy is set and none is taken from DNS, so that only calls which no server has seen are sent again.
    """
    arguments: list[tuple[str, Any]] = [
        ("grpc.primary_user_agent", user_agent()),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        # A dead peer is noticed after both times; the keepalive timeout alone never fires.
        ("grpc.keepalive_time_ms", options.keepalive_ms or _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
        ("grpc.http2.ping_timeout_ms", options.keepalive_timeout_ms),
        # A server with default settings hangs up on the third ping after the last data.
        ("grpc.http2.max_pings_without_data", _PINGS_WITHOUT_DATA if options.keepalive_ms is None else 0),
        # A server that restarts is found again within a second, however long it was away, while the attempts of a call
        # last; by default it would take up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _SLOWEST_RECONNECT_MS),
        # How long one attempt may take, in spite of its name: of an address that answers nothing.
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_http_proxy", 0),
        # A connection belongs to its client and ends with it.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if address.balanced:
        arguments += [
            ("grpc.service_config", _BALANCED),
            # The name is looked up again when a connection is lost; by default every 30 s at most.
            ("grpc.dns_min_time_between_resolutions_ms", _RESOLVE_INTERVAL_MS),
        ]
    if address.more:  # else the whole list
        arguments.append(("grpc.default_authority", address.authority))
    return arguments


def _credentials(options: ClientOptions) -> grpc.ChannelCredentials:
    roots, key, cert = pem_parts(options.tls)
    if "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" in os.environ and (options.tls is None or options.tls.ca is None):
        roots = None  # gRPC's own way to name authorities is followed
    return grpc.ssl_channel_credentials(roots, key, cert)
