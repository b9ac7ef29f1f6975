"""What one caller may use, on both ports: requests, streams, tokens; and when to try again."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from quill.errors import InvalidUsage, ResourceExhausted
from quill.limits import Quota
from quill.principal import token_meter
from quill.server.auth import Auth
from quill.server.quota import Account, Bucket
from support.http1 import Connection, enveloped, post
from support.probe import STREAM, UNARY, Answer, Ask, Stub, outcome, serving

JSON = "application/json"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


async def echo(request, context):
    return Answer(text=request.text)


def retry_of(error):
    """The seconds of a gRPC error: those of its RetryInfo, checked against its trailer."""
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert trailers["retry-after"] == str(info.retry_delay.seconds)
    assert trailers["grpc-retry-pushback-ms"] == str(info.retry_delay.seconds * 1000)
    assert f"try again in {info.retry_delay.seconds} s" in error.details()
    return info.retry_delay.seconds


class Clock:
    """A clock that stands until it is moved: real time would make exact figures impossible."""

    now_s = 0.0

    def __call__(self):
        return self.now_s


async def test_requests_over_the_quota_are_told_when_to_try_again_on_both_ports():
    async with serving(quota=Quota(requests_per_minute=2), unary=echo) as server, Stub(server.grpc_address) as stub:
        assert (await stub.unary(Ask(text="one"))).text == "one"
        assert (await post(server.http_url, UNARY, JSON, b'{"text":"two"}')).status == 200
        error = await outcome(stub.unary(Ask()))
        assert error.code() is EXHAUSTED
        assert "requests_per_minute of 2" in error.details()
        assert 1 <= retry_of(error) <= 30
        reply = await post(server.http_url, UNARY, JSON, b"{}")
        assert (reply.status, reply.json()["code"]) == (429, "resource_exhausted")
        assert 1 <= int(reply["retry-after"]) <= 30
        (detail,) = reply.json()["details"]
        assert detail["type"] == "google.rpc.RetryInfo"
        reply = await post(server.http_url, STREAM, "application/connect+json", enveloped(b"{}"))
        assert reply.end()["error"]["details"][0]["type"] == "google.rpc.RetryInfo"


async def test_health_costs_nothing():
    quota = Quota(requests_per_minute=1, live_streams=1)
    async with serving(quota=quota, unary=echo) as server, Stub(server.grpc_address) as stub:
        health = health_pb2_grpc.HealthStub(stub.channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        for _ in range(5):
            await health.Check(health_pb2.HealthCheckRequest())
        assert (await stub.unary(Ask(text="first"))).text == "first"
        assert (await outcome(stub.unary(Ask()))).code() is EXHAUSTED


async def test_live_streams_are_counted_over_both_ports_and_freed_when_they_end():
    async def hang(request, context):
        yield Answer()
        await asyncio.Event().wait()

    async with (
        serving(quota=Quota(live_streams=2), unary=echo, stream=hang) as server,
        Stub(server.grpc_address) as stub,
    ):
        first = stub.stream(Ask())
        await first.read()
        connection = await Connection.open(server.http_url)
        await connection.ask("POST", STREAM, enveloped(b""), [("content-type", "application/connect+proto")])
        await connection.head()
        await connection.chunk()
        error = await outcome(stub.stream(Ask()))
        assert error.code() is EXHAUSTED
        assert "2 live streams and the quota live_streams is 2" in error.details()
        assert retry_of(error) == 1
        reply = await post(server.http_url, STREAM, "application/connect+proto", enveloped(b""))
        assert reply.end()["error"]["code"] == "resource_exhausted"
        assert (await stub.unary(Ask(text="no stream"))).text == "no stream"
        await connection.__aexit__()
        first.cancel()
        async with asyncio.timeout(20):
            again = stub.stream(Ask())
            while await _first(again) is None:
                again = stub.stream(Ask())
        again.cancel()


async def _first(call):
    try:
        return await call.read()
    except grpc.aio.AioRpcError:
        return None


async def test_tokens_that_a_call_used_are_waited_for_by_the_next():
    async def costly(request, context):
        token_meter.get()(request.count)
        return Answer()

    async with serving(quota=Quota(tokens_per_minute=600), unary=costly) as server:
        reply = await post(server.http_url, UNARY, JSON, b'{"count": 1200}')
        assert reply.status == 200
        async with Stub(server.grpc_address) as stub:
            error = await outcome(stub.unary(Ask()))
        assert error.code() is EXHAUSTED
        assert "tokens_per_minute of 600" in error.details()
        assert 50 <= retry_of(error) <= 61


async def test_each_principal_has_its_own_account(tmp_path):
    import hashlib

    path = tmp_path / "keys.toml"
    for name in ("a", "b"):
        digest = hashlib.sha256(name.encode()).hexdigest()
        with path.open("a") as file:
            file.write(f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\nallow = ["*"]\n')
    async with serving(auth=Auth(path), quota=Quota(requests_per_minute=1), unary=echo) as server:
        for secret, wanted in (("a", 200), ("a", 429), ("b", 200), ("b", 429), ("none", 401), ("none", 401)):
            assert (await post(server.http_url, UNARY, JSON, b"{}", [("x-api-key", secret)])).status == wanted


def test_a_request_that_is_refused_costs_nothing():
    clock = Clock()
    account = Account("a", Quota(requests_per_minute=1), clock)
    account.take_request()
    for _ in range(5):
        with pytest.raises(ResourceExhausted, match="try again in 60 s"):
            account.take_request()
    clock.now_s = 59.9
    with pytest.raises(ResourceExhausted, match="try again in 1 s"):
        account.take_request()
    clock.now_s = 60.0
    account.take_request()


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=30))
def test_over_any_time_no_more_is_given_than_the_quota_and_one_minute_ahead(steps):
    clock = Clock()
    bucket = Bucket(30, clock)
    given_out = 0
    for wait_s, amount in steps:
        clock.now_s += wait_s
        if bucket.wait_s(amount) == 0:
            bucket.take(amount)
            given_out += amount
        assert given_out <= 30 + clock.now_s / 2 + 1e-6


def test_a_quota_below_one_is_refused():
    with pytest.raises(InvalidUsage, match="live_streams must be at least 1, got 0"):
        Quota(live_streams=0)
