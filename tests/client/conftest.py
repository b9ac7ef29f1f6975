import contextlib

import pytest

from client.harness import DRIVERS, Host


@pytest.fixture(scope="session")
def host():
    """One server for all tests of the client that leave it as it is."""
    with Host() as host:
        yield host


@pytest.fixture(params=["connect", "grpc"])
def protocol(request):
    return request.param


@pytest.fixture(params=["sync", "async"])
def shell(request):
    return request.param


@pytest.fixture
def drive(shell):
    """Makes clients of one kind, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def make(url, **options):
            driver = DRIVERS[shell](url, **options)
            stack.callback(driver.close)
            return driver

        yield make


@pytest.fixture
def client(host, protocol, drive):
    """A client of either kind over either protocol."""
    return drive(host.url(protocol))
