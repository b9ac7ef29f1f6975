import contextlib

import pytest

from client.harness import DRIVERS
from tensors.scene import TensorHost


@pytest.fixture(scope="session")
def tensor_host():
    """One server for all tests that leave it as it is."""
    with TensorHost() as host:
        yield host


@pytest.fixture(params=["connect", "grpc", "grpc-web"])
def protocol(request):
    return request.param


@pytest.fixture(params=["sync", "async"])
def shell(request):
    return request.param


@pytest.fixture
def drive(shell):
    """Makes clients of one kind for a host, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def make(host, protocol, **options):
            url = host.url("grpc" if protocol == "grpc" else "connect")
            driver = DRIVERS[shell](url, protocol=protocol, **options)
            stack.callback(driver.close)
            return driver

        yield make


@pytest.fixture
def client(tensor_host, protocol, drive):
    """A client of either kind over each protocol."""
    return drive(tensor_host, protocol)
