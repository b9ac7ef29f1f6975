"""How an asyncio client gets a connection: names, addresses in turn, Unix sockets, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import Any

from quill.client import faults
from quill.client.address import Address
from quill.client.peer import Peer
from quill.client.socket_async import AsyncSocket, connect_socket
from quill.client.tuning import ADDRESS_PATIENCE_S


async def connect(peer: Peer) -> tuple[AsyncSocket, str | None]:
    """A connection to a server, over TLS where it speaks that, and the protocol that was agreed on (ALPN).

    Raises:
        RpcError: There is none; marked by ``faults.not_sent`` where another try may bring one.
        InvalidUsage: The certificates cannot be used.
    """
    address = peer.address
    context = None if peer.contexts is None else await asyncio.to_thread(peer.contexts.get)
    loop = asyncio.get_running_loop()
    try:
        connected = AsyncSocket(await _reach(address, loop), loop)
    except OSError as error:
        raise faults.unreachable_errno(address, error) from None
    if context is None:
        return connected, None
    with contextlib.ExitStack() as closing:
        closing.callback(connected.close)
        try:
            agreed = await connected.secure(context, address.host)
        except OSError as error:
            raise peer.insecure(error) from None
        closing.pop_all()
    return connected, agreed


async def _reach(address: Address, loop: asyncio.AbstractEventLoop) -> socket.socket:
    """A socket that is connected to the first of the server's addresses that takes a connection."""
    if address.unix_path is not None:
        return await connect_socket(address.unix_path, socket.AF_UNIX, loop)
    found = await _look_up(address, loop)
    failure: OSError | None = None
    for number, (family, _, _, _, target) in enumerate(found, 1):
        try:
            async with asyncio.timeout(ADDRESS_PATIENCE_S if number < len(found) else None):
                return await connect_socket(target, family, loop)
        except OSError as error:  # TimeoutError is one
            failure = failure or error
    raise failure or OSError


async def _look_up(address: Address, loop: asyncio.AbstractEventLoop) -> list[Any]:
    """The addresses of the server's name; an IP address needs no other thread."""
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
