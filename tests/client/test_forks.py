"""Forks: parent and child go on, at once; where a library cannot, the client says so and does not hang."""

import textwrap

import pytest

from client.harness import LIMIT_S
from client.test_processes import run

PROTOCOLS = ["grpc", "connect", "grpc-web"]


def url(host, protocol):
    return host.url("grpc" if protocol == "grpc" else "connect")


WORK = """
    import multiprocessing, signal
    client = QuillClient(url, protocol=sys.argv[2])

    def work(number):
        for index in range(20):
            size = 100 * number + index
            assert client.call(RAW, "Unary", ask(bytes=size), timeout_ms=20_000) == bytes(size)
            if index % 5 == 0:
                assert len(list(client.stream(RAW, "Stream", ask(count=number)))) == number

    def at_once(fork):
        \"\"\"The parent works while its children do.\"\"\"
        work(1)
        children = [fork(number) for number in (2, 3, 4)]
        work(5)
        for child in children:
            child.join(60)
            assert child.exitcode == 0, child.exitcode
        work(1)
        print("all well")
"""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_parent_and_three_forked_children_call_at_once(host, protocol):
    printed = run(
        textwrap.dedent(WORK)
        + textwrap.dedent("""
            class Child:
                def __init__(self, number):
                    self.pid = os.fork()
                    if self.pid == 0:
                        signal.alarm(60)
                        work(number)
                        sys.exit()  # with the finalizers of all that it inherited

                def join(self, timeout):
                    self.exitcode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

            at_once(Child)
        """),
        url(host, protocol),
        protocol,
    )
    assert printed == "all well\n"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_children_of_multiprocessing_call_at_once(host, protocol):
    printed = run(
        textwrap.dedent(WORK)
        + textwrap.dedent("""
            def start(number):
                child = multiprocessing.get_context("fork").Process(target=work, args=(number,))
                child.start()
                return child

            at_once(start)
        """),
        url(host, protocol),
        protocol,
    )
    assert printed == "all well\n"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("parent_has_called", [True, False])
def test_an_asyncio_client_in_a_child_works_or_says_that_it_cannot(host, protocol, parent_has_called):
    """It works where nobody used the library before the fork, or the library bears it; it never hangs."""
    printed = run(
        f"""
        import signal

        async def work():
            async with AsyncQuillClient(url, protocol={protocol!r}) as client:
                return await client.call(RAW, "Unary", ask(bytes=3), timeout_ms={LIMIT_S * 1000})

        if {parent_has_called}:
            assert asyncio.run(work()) == bytes(3)
        child = os.fork()
        if child == 0:
            signal.alarm({2 * LIMIT_S})
            try:
                assert asyncio.run(work()) == bytes(3)
                print("works", flush=True)
            except InvalidUsage as error:
                print("refused" if "forked" in str(error) else error, flush=True)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        if {parent_has_called}:
            assert asyncio.run(work()) == bytes(3)
        """,
        url(host, protocol),
    )
    assert printed == ("refused\n" if parent_has_called and protocol == "grpc" else "works\n")


def test_a_blocking_client_serves_the_child_of_a_process_with_asyncio_clients(host):
    """What the refusal of AsyncQuillClient recommends."""
    printed = run(
        """
        import signal

        async def work():
            async with AsyncQuillClient(url) as client:
                assert await client.call(RAW, "Unary", ask(bytes=3)) == bytes(3)

        asyncio.run(work())
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            with QuillClient(url) as client:
                assert client.call(RAW, "Unary", ask(bytes=3)) == bytes(3)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        url(host, "connect"),
    )
    assert printed == "0\n"
