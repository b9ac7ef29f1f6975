"""Forks, Ctrl-C, and what is left behind: real processes."""

import os
import signal
import ssl
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import grpc
import pytest

import quill
from client.harness import LIMIT_S, answer, answering
from support.processes import first_line

ROOT = Path(quill.__file__).parent.parent
CERTIFICATE = Path(__file__).parent / "localhost.pem"

PRELUDE = """
    import os, sys, time, gc, threading, asyncio
    from quill import QuillClient, AsyncQuillClient, RpcError, InvalidUsage
    from client.harness import RAW, ask
    url = sys.argv[1]
"""


def start(code, *arguments, **environment):
    """Run code in a fresh interpreter, with warnings as errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "GRPC_ENABLE_FORK_SUPPORT": "1", "GRPC_VERBOSITY": "NONE"}
        | environment,
    )


def run(code, *arguments, **environment):
    """What the code prints; it must end well and say nothing on standard error."""
    process = start(code, *arguments, **environment)
    try:
        printed, complained = process.communicate(timeout=3 * LIMIT_S)
    finally:
        process.kill()
    assert (process.returncode, complained) == (0, "")
    return printed


def test_a_client_works_in_parent_and_child_after_a_fork(host, protocol):
    printed = run(
        """
        client = QuillClient(url)
        assert client.call(RAW, "Unary", ask(bytes=2)) == bytes(2)
        stream = client.stream(RAW, "Stream", ask(count=50, gap_s=0.01))
        next(stream)
        child = os.fork()
        if child == 0:
            for _ in range(3):
                assert client.call(RAW, "Unary", ask(bytes=3), timeout_ms=5000) == bytes(3)
            assert len(list(client.stream(RAW, "Stream", ask(count=5)))) == 5
            try:
                next(stream)
            except InvalidUsage:
                print("child well", flush=True)
            sys.exit()  # with the finalizers of all that it inherited
        assert len(list(stream)) == 49
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert client.call(RAW, "Unary", ask(bytes=2)) == bytes(2)
        client.close()
        print("parent well")
        """,
        host.url(protocol),
    )
    assert printed == "child well\nparent well\n"


@pytest.mark.parametrize(
    "call", ['call(RAW, "Unary", ask(sleep_s=60))', 'stream(RAW, "Stream", ask(gap_s=60)).__next__()']
)
def test_ctrl_c_ends_a_blocked_call_at_once(host, protocol, call):
    calls = host.raw.calls
    process = start(
        f"""
        client = QuillClient(url, timeout_ms=50_000)
        print("ready", flush=True)
        try:
            client.{call}
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        client.close()
        """,
        host.url(protocol),
    )
    try:
        first_line(process)
        host.until(lambda: host.raw.calls > calls)
        time.sleep(0.2)  # the client has sent everything and now only waits; nothing outside shows that
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        printed, complained = process.communicate(timeout=LIMIT_S)
        assert (printed, complained) == ("interrupted\n", "")
        assert time.monotonic() - pressed < 5
    finally:
        process.kill()
    host.until(lambda: host.raw.live == 0)


def test_nothing_is_left_behind_by_a_blocking_client(host, protocol):
    run(
        """
        def threads_and_descriptors():
            return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

        def until(condition):
            deadline = time.monotonic() + 10
            while not condition():
                assert time.monotonic() < deadline
                time.sleep(0.02)

        def no_watchdog():
            gc.collect()
            return all(thread.name != "quill-watchdog" for thread in threading.enumerate())

        def work():
            with QuillClient(url, idle_timeout_ms=5000) as client:
                for _ in range(3):
                    client.call(RAW, "Unary", ask(bytes=10))
                    list(client.stream(RAW, "Stream", ask(count=3)))
                next(client.stream(RAW, "Stream", ask(count=3)))
                abandoned = client.stream(RAW, "Stream", ask(count=3))
                next(abandoned)

        work()  # the library keeps the threads that it has started once
        until(no_watchdog)
        threads, descriptors = threads_and_descriptors()
        for _ in range(5):
            work()
        until(no_watchdog)
        until(lambda: threads_and_descriptors()[0] <= threads)
        until(lambda: threads_and_descriptors()[1] <= descriptors)
        """,
        host.url(protocol),
    )


def test_nothing_is_left_behind_by_an_asyncio_client(host, protocol):
    run(
        """
        def descriptors():
            return len(os.listdir("/proc/self/fd"))

        async def work():
            async with AsyncQuillClient(url) as client:
                await asyncio.gather(*(client.call(RAW, "Unary", ask(bytes=10)) for _ in range(5)))
                [_ async for _ in client.stream(RAW, "Stream", ask(count=3))]
                abandoned = client.stream(RAW, "Stream", ask(count=3))
                await anext(abandoned)
            await asyncio.sleep(0.05)
            assert len(asyncio.all_tasks()) == 1, asyncio.all_tasks()

        asyncio.run(work())
        gc.collect()
        before = descriptors()
        for _ in range(5):
            asyncio.run(work())
        gc.collect()
        deadline = time.monotonic() + 10
        while (after := descriptors()) > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert after <= before, (before, after)
        """,
        host.url(protocol),
    )


def test_a_client_that_nobody_closes_ends_quietly(host, protocol):
    run(
        """
        client = QuillClient(url)
        client.call(RAW, "Unary", ask())
        stream = client.stream(RAW, "Stream", ask(count=3))
        next(stream)

        async def work():
            client = AsyncQuillClient(url)
            await client.call(RAW, "Unary", ask())
            await anext(client.stream(RAW, "Stream", ask(count=3)))

        asyncio.run(work())
        """,
        host.url(protocol),
    )


def test_an_asyncio_client_begins_anew_on_the_next_loop(host, protocol):
    run(
        """
        client = AsyncQuillClient(url)
        for _ in range(3):
            assert asyncio.run(client.call(RAW, "Unary", ask(bytes=1))) == bytes(1)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(client.call(RAW, "Unary", ask()))
        try:
            asyncio.run(client.call(RAW, "Unary", ask()))
        except InvalidUsage as error:
            assert "another event loop" in str(error)
        else:
            raise AssertionError
        try:
            client.stream(RAW, "Stream", ask())
        except InvalidUsage as error:
            assert "running event loop" in str(error)
        else:
            raise AssertionError
        loop.run_until_complete(client.close())
        loop.close()
        """,
        host.url(protocol),
    )


def test_sixteen_threads_share_a_client(host, protocol):
    run(
        """
        from concurrent.futures import ThreadPoolExecutor

        def work(number):
            for _ in range(10):
                assert client.call(RAW, "Unary", ask(bytes=number)) == bytes(number)
                assert len(list(client.stream(RAW, "Stream", ask(count=number)))) == number
            return number

        with QuillClient(url) as client, ThreadPoolExecutor(16) as pool:
            assert list(pool.map(work, range(16))) == list(range(16))
        """,
        host.url(protocol),
    )


def test_a_client_loads_what_it_needs_and_when_it_needs_it(host):
    code = """
        import sys
        from quill import QuillClient
        from quill.client.async_client import AsyncQuillClient
        heavy = ("grpc", "connectrpc", "pyqwest", "httpcore", "google.protobuf", "numpy", "zstandard")
        client, other = QuillClient(sys.argv[1]), AsyncQuillClient(sys.argv[1])
        client.set_bearer_token("x")
        print(*(name for name in heavy if name in sys.modules))
        client.call("raw.v1.Raw", "Unary", b"\\0{}")
        client.call_json("grpc.health.v1.Health", "Check", {})
        client.health_check()
        print(*(name for name in heavy if name in sys.modules))
        client.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), host.url("connect")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert done.stdout == "\nhttpcore\n"


def test_the_environments_proxies_are_not_used(host, protocol):
    nowhere = "http://127.0.0.1:9"
    proxies = dict.fromkeys(
        ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy"], nowhere
    )
    printed = run(
        """
        async def work():
            async with AsyncQuillClient(url) as client:
                await client.call(RAW, "Unary", ask())

        QuillClient(url).call(RAW, "Unary", ask())
        asyncio.run(work())
        print("reached")
        """,
        host.url(protocol),
        **proxies,
    )
    assert printed == "reached\n"


@pytest.fixture(scope="module")
def tls_urls(host):
    """Servers with a certificate for localhost that no authority has signed."""

    async def say(request, context):
        return b"secure"

    async def start():
        key, _, rest = CERTIFICATE.read_bytes().partition(b"-----BEGIN CERTIFICATE")
        server = grpc.aio.server()
        handlers = {"C": grpc.unary_unary_rpc_method_handler(say)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
        credentials = grpc.ssl_server_credentials([(key, b"-----BEGIN CERTIFICATE" + rest)])
        port = server.add_secure_port("localhost:0", credentials)
        await server.start()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        return server, port, context

    server, grpc_port, context = host.run(start())
    page = answer(headers=["content-type: application/proto"], body=b"secure")
    with host.tcp(answering(page), ssl=context) as https_port:
        yield {"grpc": f"grpcs://localhost:{grpc_port}", "connect": f"https://localhost:{https_port}"}
    host.run(server.stop(0))


OVER_TLS = """
    async def work():
        async with AsyncQuillClient(url) as client:
            client.set_bearer_token("secret")
            return await client.call("a.B", "C", b"")

    def blocking():
        with QuillClient(url) as client:
            client.set_bearer_token("secret")
            return client.call("a.B", "C", b"")

    for action in (blocking, lambda: asyncio.run(work())):
        try:
            print(action().decode())
        except RpcError as error:
            print(error.code.name, "nobody who is trusted" in error.message)
"""


def test_tls_with_a_trusted_certificate_works(tls_urls, protocol):
    trust = {"SSL_CERT_FILE": str(CERTIFICATE), "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(CERTIFICATE)}
    assert run(OVER_TLS, tls_urls[protocol], **trust) == "secure\nsecure\n"


def test_tls_with_a_strange_certificate_is_refused(tls_urls, protocol):
    process = start(OVER_TLS, tls_urls[protocol])
    printed, _ = process.communicate(timeout=LIMIT_S)  # C-core logs the failed handshake
    assert printed == "UNAVAILABLE True\nUNAVAILABLE True\n"
