"""No secret in a repr, an error, a log or an output: canaries in every place, through calls that end in every way."""

import asyncio
import contextlib
import logging
import traceback

import pytest

import quill
from credentials.conftest import key
from quill import AsyncQuillClient, InvalidUsage, QuillClient, QuillError, ResponseMetadata
from quill.server.auth import Auth
from support import probe
from support.http2 import GrpcPeer
from support.probe import SERVICE, Answer, Ask

TOKEN, KEY, HEADER, ONCE, SENT = (f"canary-{place}-5b7e" for place in ("token", "key", "header", "once", "message"))
SECRETS = (TOKEN, KEY, HEADER, ONCE)
PROTOCOLS = ("connect", "grpc", "grpc-web")


async def unary(request, context):
    match request.count:
        case 1:
            raise RuntimeError("told to fail")
        case 2:
            await asyncio.Event().wait()
        case 3:
            await context.abort(probe.grpc.StatusCode.ABORTED, "told to abort")
    return Answer(count=1)


async def stream(request, context):
    yield Answer(count=1)
    yield await unary(request, context)


class Listener(logging.Handler):
    """Keeps all that is logged, by whomever, with the arguments."""

    def __init__(self):
        super().__init__(1)
        self.texts = []
        self._loggers = [logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)]

    def emit(self, record):
        self.texts += [self.format(record), repr(record.__dict__)]

    @contextlib.contextmanager
    def listening(self):
        levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(1)
        logging.root.addHandler(self)
        try:
            yield
        finally:
            logging.root.removeHandler(self)
            for logger, level in zip(self._loggers, levels, strict=True):
                logger.setLevel(level)


@pytest.fixture
def shown(capfd):
    """What a test adds to it must show no secret, and neither must what is logged and printed meanwhile."""
    listener, texts = Listener(), []
    with listener.listening():
        yield texts
    logs = [*listener.texts, *capfd.readouterr()]
    assert any("'levelname': 'DEBUG'" in text for text in logs), "the logs were not listened to"
    for text in (*texts, *logs):
        assert not [secret for secret in SECRETS if secret in text], text[:2000]
    assert not [text for text in logs if SENT in text]


def of_error(error):
    """All that an error tells, and those behind it, without local variables."""
    seen = []
    while error is not None and len(seen) < 50:
        seen += [str(error), repr(error), repr(getattr(error, "__dict__", None)), repr(error.args)]
        seen += traceback.format_exception(error)
        error = error.__cause__ or error.__context__
    return seen


CALLS = {
    "success": (Ask(text=SENT), {}),
    "an exception in the handler": (Ask(text=SENT, count=1), {}),
    "a timeout": (Ask(text=SENT, count=2), {"timeout_ms": 100}),
    "a status": (Ask(text=SENT, count=3), {}),
    "bad protobuf": (b"\xff" + SENT.encode(), {}),
    "bad JSON": (b'{"count": "x", "text": "%s"}' % SENT.encode(), {"codec": "json"}),
    "a header that cannot be sent": (Ask(text=SENT), {"headers": {"x-once": ONCE + "\n"}}),
    "a header as its own name": (Ask(text=SENT), {"headers": {f"authorization: Bearer {ONCE}": ""}}),
    "a header of the wrong type": (Ask(text=SENT), {"headers": {"x-once-bin": ONCE}}),
    "too many headers": (Ask(text=SENT), {"headers": {"x-once": ONCE * 2000}}),
    "other credentials": (Ask(text=SENT), {"headers": {"authorization": f"Bearer {ONCE}", "x-api-key": ONCE}}),
    "malformed credentials": (Ask(text=SENT), {"headers": {"authorization": ONCE}}),
    "a message that is too large": (Ask(text=SENT * 200_000), {}),
}
FAILS = frozenset(CALLS) - {"success"}


@contextlib.asynccontextmanager
async def serving(folder):
    file = folder / "keys.toml"
    file.write_text(key("alice", TOKEN, ["*"]))
    limits = quill.Limits(max_message_bytes=1024 * 1024)
    async with probe.serving(auth=Auth(file), limits=limits, unary=unary, look=unary, stream=stream) as server:
        yield server


def client_for(kind, server, protocol):
    url = f"grpc://{server.grpc_address}" if protocol == "grpc" else server.http_url
    client = kind(url, 20_000, protocol=protocol, headers={"x-trace": HEADER})
    client.set_bearer_token(TOKEN)
    return client


@pytest.mark.parametrize("method", ["Unary", "Stream", "Nothing"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_no_secret_shows_in_what_the_asyncio_client_and_the_server_tell(shown, tmp_path, protocol, method):
    asyncio.get_running_loop().set_debug(True)
    async with serving(tmp_path) as server, client_for(AsyncQuillClient, server, protocol) as client:
        ends = {}
        for name, (request, options) in CALLS.items():
            response = ResponseMetadata()
            try:
                if method == "Stream":
                    made = client.stream(SERVICE, method, request, response=response, **options)
                    shown.append(repr(made))
                    ends[name] = [message async for message in made]
                else:
                    ends[name] = await client.call(SERVICE, method, request, response=response, **options)
            except QuillError as error:
                ends[name] = error
                shown += of_error(error)
            shown += [repr(ends[name]), repr(response)]
        running = asyncio.create_task(client.call(SERVICE, "Unary", Ask(count=2)))
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await running
        shown += [repr(running), *of_error(cancelled.value)]
        shown += [repr(found) for found in (client, vars(client), client.llm, server, vars(server))]
    check(ends, method)


@pytest.mark.parametrize("method", ["Unary", "Stream"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_no_secret_shows_in_what_the_blocking_client_tells(shown, tmp_path, protocol, method):
    def calls():
        ends = {}
        with client_for(QuillClient, server, protocol) as client:
            for name, (request, options) in CALLS.items():
                try:
                    made = getattr(client, "call" if method == "Unary" else "stream")(
                        SERVICE, method, request, **options
                    )
                    shown.append(repr(made))
                    ends[name] = list(made) if method == "Stream" else made
                except QuillError as error:
                    ends[name] = error
                    shown.extend(of_error(error))
            shown.extend(repr(found) for found in (client, vars(client), client.llm))
        with pytest.raises(InvalidUsage) as closed:
            client.call(SERVICE, method, b"")
        shown.extend(of_error(closed.value))
        return ends

    async with serving(tmp_path) as server:
        check(await asyncio.to_thread(calls), method)


def check(ends, method):
    """The calls ended as they should, or they would prove nothing."""
    if method != "Nothing":
        failed = {name for name, end in ends.items() if isinstance(end, QuillError)}
        assert failed == FAILS, {name: str(end)[:100] for name, end in ends.items()}
        assert isinstance(ends["other credentials"], quill.Unauthenticated)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("scheme", ["nobody there", "TLS where there is none"])
async def test_no_secret_shows_where_there_is_no_connection(shown, tmp_path, unused_tcp_port, protocol, scheme):
    def call():
        with QuillClient(url, 2000, protocol=protocol) as client:
            client.set_api_key(KEY, "X-Own-Key")
            client.set_bearer_token(TOKEN)
            for method in ("call", "stream"):
                with pytest.raises(QuillError) as caught:
                    list(getattr(client, method)(SERVICE, "Unary", b"", headers={"x-once": ONCE}))
                shown.extend(of_error(caught.value))

    async with serving(tmp_path) as server:
        port = server.http_url.rpartition(":")[2]
        url = f"http://127.0.0.1:{unused_tcp_port}" if scheme == "nobody there" else f"https://127.0.0.1:{port}"
        await asyncio.to_thread(call)


def test_a_health_check_sends_no_credentials():
    with GrpcPeer() as peer:
        peer.replies["/grpc.health.v1.Health/Check"] = "identity", b"\0\0\0\0\2\x08\1"
        with QuillClient(peer.url, headers={"authorization": TOKEN, "x-trace": HEADER}) as client:
            client.set_api_key(KEY)
            assert client.health_check()
    (asked,) = peer.requests
    assert not [value for value in asked.values() if "canary" in value]


def test_headers_given_at_once_show_in_no_repr():
    client = QuillClient("http://localhost", headers={"cookie": TOKEN, "x-trace": HEADER})
    client.set_api_key(KEY)
    stream = client.stream(SERVICE, "Stream", b"", headers={"x-once": ONCE})
    for found in (client, vars(client), stream, vars(stream), client.llm, vars(client.llm), client._headers):
        assert "canary" not in repr(found)
    assert set(client.get_headers().values()) == {TOKEN, HEADER, KEY}
    client.close()
