"""An HTTP/2 server of single frames, by the h2 library: it does what no real server does."""

import asyncio
import contextlib

import h2.config
import h2.connection
import h2.events
import h2.settings

ENVELOPE = b"\0\0\0\0\x01"
ENDING = b"\x02\0\0\0\x02{}"


class Peer2:
    """One connection. Frames that h2 would refuse to send go through ``raw``."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.bodies, self.headers, self.resets, self.ended, self.events = {}, {}, {}, set(), []
        self.credits = True
        """Whether what comes is taken from the window."""

    async def start(self, **settings):
        if settings:
            codes = {getattr(h2.settings.SettingCodes, name): value for name, value in settings.items()}
            self.h2.local_settings = h2.settings.Settings(client=False, initial_values=codes)
        self.h2.initiate_connection()
        await self.flush()
        return self

    async def flush(self):
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def raw(self, *frames):
        await self.flush()
        self.writer.write(b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames))
        await self.writer.drain()

    async def read_until(self, condition):
        await self.flush()
        async with asyncio.timeout(20):
            while not condition():
                data = await self.reader.read(65536)
                if not data:
                    raise asyncio.IncompleteReadError(b"", None)
                for event in self.h2.receive_data(data):
                    self._note(event)
                with contextlib.suppress(ConnectionError):
                    await self.flush()

    def _note(self, event):
        self.events.append(event)
        match event:
            case h2.events.RequestReceived():
                self.headers[event.stream_id] = dict(event.headers)
                self.bodies[event.stream_id] = b""
            case h2.events.DataReceived():
                self.bodies[event.stream_id] += event.data
                if self.credits:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
            case h2.events.StreamReset():
                self.resets[event.stream_id] = event.error_code

    async def requests(self, count=1):
        """Wait until so many requests have come to their end; the numbers of their streams."""
        await self.read_until(lambda: len(self.ended) >= count)
        return sorted(self.ended)

    async def answer(self, stream_id, *parts, content_type="application/connect+proto", end=True, headers=()):
        self.h2.send_headers(stream_id, [(":status", "200"), ("content-type", content_type), *headers])
        for part in parts:
            self.h2.send_data(stream_id, part)
        if end:
            self.h2.end_stream(stream_id)
        await self.flush()

    async def rest(self):
        """Read until the client is gone."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self.read_until(lambda: False)
