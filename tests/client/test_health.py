"""health_check(): a real check that raises nothing and tells nobody a secret."""

import asyncio
import time

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.harness import answer, answering, read_request
from quill.client import health as client_health

CANARY = "canary-5b0c"


def test_a_server_that_is_well_is_well(client):
    assert client.health_check() is True


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "grpc://127.0.0.1:1", "http://no-such-host.invalid"])
def test_a_server_that_cannot_be_reached_is_not_well(drive, url):
    assert drive(url).health_check() is False


@pytest.mark.parametrize("status", ["SERVING", "NOT_SERVING", "UNKNOWN"])
def test_the_status_of_the_health_service_counts(host, drive, status):
    async def start():
        server = grpc.aio.server()
        servicer = health.aio.HealthServicer()
        await servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = host.run(start())
    try:
        assert drive(f"grpc://127.0.0.1:{port}").health_check() is (status == "SERVING")
    finally:
        host.run(server.stop(0))


def test_the_messages_are_those_of_the_generated_classes():
    assert health_pb2.HealthCheckRequest().SerializeToString() == client_health.REQUEST
    for status in health_pb2.HealthCheckResponse.ServingStatus.values():
        reply = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        assert client_health.is_serving(reply) is (status == health_pb2.HealthCheckResponse.SERVING)


def test_a_grpc_server_without_the_service_is_not_well(host, drive):
    async def start():
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = host.run(start())
    try:
        assert drive(f"grpc://127.0.0.1:{port}").health_check() is False
    finally:
        host.run(server.stop(0))


class Page:
    """An HTTP server without the health service but with a health page."""

    def __init__(self, status):
        self.heads = []
        self._status = status

    async def __call__(self, reader, writer):
        head, _ = await read_request(reader)
        self.heads.append(head.decode().lower())
        is_page = head.startswith(b"GET /healthz ")
        writer.write(answer(self._status if is_page else "404 Not Found", ["content-type: text/plain"], b"x"))
        await writer.drain()


@pytest.mark.parametrize(
    ("status", "well"),
    [("200 OK", True), ("503 Service Unavailable", False), ("404 Not Found", False), ("302 Found", False)],
)
def test_a_server_without_the_service_is_asked_for_its_page(host, drive, status, well):
    page = Page(status)
    with host.tcp(page) as port:
        assert drive(f"http://127.0.0.1:{port}").health_check() is well
    assert [head.split()[:2] for head in page.heads] == [
        ["post", "/grpc.health.v1.health/check"],
        ["get", "/healthz"],
    ]


def test_no_header_of_the_user_goes_along(host, drive):
    page = Page("200 OK")
    with host.tcp(page) as port:
        client = drive(f"http://127.0.0.1:{port}", headers={"x-own": CANARY})
        client.client.set_bearer_token(CANARY)
        client.client.set_api_key(CANARY)
        client.client.set_header("cookie", CANARY)
        assert client.health_check() is True
    assert len(page.heads) == 2
    assert CANARY not in "".join(page.heads)


def test_a_client_with_secrets_for_a_foreign_host_may_still_ask(drive):
    client = drive("http://no-such-host.invalid")
    client.client.set_bearer_token(CANARY)
    assert client.health_check() is False


@pytest.mark.parametrize(
    "answer_bytes", [b"nonsense\r\n\r\n", answer(body=b"<html>", headers=["content-type: text/html"])]
)
def test_nonsense_is_not_well(host, drive, answer_bytes):
    with host.tcp(answering(answer_bytes)) as port:
        assert drive(f"http://127.0.0.1:{port}").health_check() is False


def test_a_server_that_is_silent_is_not_well_after_the_timeout(host, protocol, drive, monkeypatch):
    monkeypatch.setattr(client_health, "TIMEOUT_MS", 200)

    async def silent(reader, writer):
        await asyncio.sleep(10)

    with host.tcp(silent) as port:
        started = time.monotonic()
        assert drive(f"{'http' if protocol == 'connect' else 'grpc'}://127.0.0.1:{port}").health_check() is False
        assert time.monotonic() - started < 2
