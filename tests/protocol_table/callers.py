"""The blocking and the asyncio client behind one face: a call of any kind gives its replies and its error."""

import asyncio
import queue
import threading

import quill
from support.probe import SERVICE

PATIENCE_S = 10
"""How long a dialogue waits for each reply, where one has to come."""

METHODS = {"unary": "Unary", "stream": "Stream", "collect": "Collect", "chat": "Chat", "turns": "Turns"}
KINDS = ("unary", "stream", "collect", "chat")


def requests_of(kind, asks):
    """What a client takes: one dict, or an iterator of them where the method takes a stream."""
    return iter(asks) if kind in {"collect", "chat", "turns"} else asks[0]


class SyncCaller:
    """Drives QuillClient."""

    cancelled = quill.Cancelled
    """What a call raises in the thread that waits for it."""

    def __init__(self, url, **options):
        self.client = quill.QuillClient(url, **options)

    def json(self, *args, **options):
        return self.client.call_json(*args, **options)

    def bytes(self, *args, **options):
        return self.client.call(*args, **options)

    def messages(self, method, request, **options):
        """The replies to messages or bytes."""
        return list(self.client.stream(SERVICE, method, request, **options))

    def run(self, kind, *asks, take=None, **options):
        """The replies to dicts, all or the first few, and the error that ended the call."""
        seen = []
        try:
            if kind == "unary":
                seen.append(self.client.call_json(SERVICE, "Unary", *asks, **options))
                return seen, None
            with self.client.stream_json(SERVICE, METHODS[kind], requests_of(kind, asks), **options) as stream:
                for message in stream:
                    seen.append(message)
                    if len(seen) == take:
                        break
        except quill.QuillError as error:
            return seen, error
        return seen, None

    def cancel(self, kind, requests, when):
        """Start a call, cancel it when something is so, and return what it raised. ``when`` blocks."""
        raised = queue.Queue()
        if kind == "unary":
            start, cancel = lambda: self.client.call_json(SERVICE, "Unary", requests), self.client.close
        else:
            stream = self.client.stream_json(SERVICE, METHODS[kind], requests)
            start, cancel = lambda: list(stream), stream.close

        def wait():
            try:
                raised.put(start())
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                raised.put(error)

        thread = threading.Thread(target=wait)
        thread.start()
        when()
        cancel()
        yield  # the caller looks at the server, and lets the requests end
        thread.join(PATIENCE_S)
        yield raised.get(timeout=PATIENCE_S)

    def held(self, *asks):
        """Requests that do not end before they are released; and how."""
        released = threading.Event()

        def requests():
            yield from asks
            released.wait(PATIENCE_S)

        return requests(), released.set

    def dialogue(self, kind, words, patience_s=PATIENCE_S):
        """Send each word when the reply to the one before has come, or give up. Replies, error, where it gave up."""
        replies, gave_up, heard = [], [], queue.Queue()

        def requests():
            for word in words:
                yield {"text": word}
                try:
                    heard.get(timeout=patience_s)
                except queue.Empty:
                    gave_up.append(word)
                    return

        try:
            for reply in self.client.stream_json(SERVICE, METHODS[kind], requests()):
                replies.append(reply.get("text"))
                heard.put(reply)
        except quill.QuillError as error:
            return replies, error, gave_up
        return replies, None, gave_up

    def first(self, kind, *asks, response):
        """The first reply of a stream that goes on, and what ``look`` finds of the response then."""
        with self.client.stream_json(SERVICE, METHODS[kind], requests_of(kind, asks), response=response) as stream:
            return next(stream), response.headers, response.trailers

    def health(self):
        return self.client.health_check()

    def close(self):
        self.client.close()


class AsyncCaller:
    """Drives AsyncQuillClient, on a loop of its own."""

    cancelled = asyncio.CancelledError

    def __init__(self, url, **options):
        self._is_closed = False
        self._runner = asyncio.Runner()
        self.client = quill.AsyncQuillClient(url, **options)

    def json(self, *args, **options):
        return self._runner.run(self.client.call_json(*args, **options))

    def bytes(self, *args, **options):
        return self._runner.run(self.client.call(*args, **options))

    def messages(self, method, request, **options):
        async def collect():
            return [message async for message in self.client.stream(SERVICE, method, request, **options)]

        return self._runner.run(collect())

    def run(self, kind, *asks, take=None, **options):
        async def collect():
            seen = []
            try:
                if kind == "unary":
                    seen.append(await self.client.call_json(SERVICE, "Unary", *asks, **options))
                    return seen, None
                requests = requests_of(kind, asks)
                async with self.client.stream_json(SERVICE, METHODS[kind], requests, **options) as stream:
                    async for message in stream:
                        seen.append(message)
                        if len(seen) == take:
                            break
            except quill.QuillError as error:
                return seen, error
            return seen, None

        return self._runner.run(collect())

    def cancel(self, kind, requests, when):
        async def call():
            if kind == "unary":
                return await self.client.call_json(SERVICE, "Unary", requests)
            return [message async for message in self.client.stream_json(SERVICE, METHODS[kind], requests)]

        async def begin():
            task = asyncio.create_task(call())
            await asyncio.to_thread(when)
            task.cancel()
            (raised,) = await asyncio.gather(task, return_exceptions=True)
            return raised

        raised = self._runner.run(begin())
        yield
        yield raised

    def held(self, *asks):
        async def requests():
            for ask in asks:
                yield ask
            await asyncio.Event().wait()

        return requests(), lambda: None

    def dialogue(self, kind, words, patience_s=PATIENCE_S):
        replies, gave_up, heard = [], [], asyncio.Queue()

        async def requests():
            for word in words:
                yield {"text": word}
                try:
                    await asyncio.wait_for(heard.get(), patience_s)
                except TimeoutError:
                    gave_up.append(word)
                    return

        async def talk():
            try:
                async for reply in self.client.stream_json(SERVICE, METHODS[kind], requests()):
                    replies.append(reply.get("text"))
                    heard.put_nowait(reply)
            except quill.QuillError as error:
                return error
            return None

        error = self._runner.run(talk())
        return replies, error, gave_up

    def first(self, kind, *asks, response):
        async def read():
            requests = requests_of(kind, asks)
            async with self.client.stream_json(SERVICE, METHODS[kind], requests, response=response) as stream:
                return await anext(stream), response.headers, response.trailers

        return self._runner.run(read())

    def health(self):
        return self._runner.run(self.client.health_check())

    def close(self):
        if not self._is_closed:
            self._is_closed = True
            self._runner.run(self.client.close())
            self._runner.close()
