"""The servicer on other servers, with other clients, and under limits."""

import asyncio
import base64
import gc
import os
from pathlib import Path

import grpc
import numpy as np
import pytest

from quill import AsyncQuillClient, QuillClient
from quill.errors import Code, InvalidArgument, NotFound, ResourceExhausted, Unimplemented
from quill.lanes.chunks import Frames
from quill.limits import Limits
from quill.proto import (
    GetTensorModelRequest,
    InferHeader,
    InferRequest,
    NegotiateLaneRequest,
    StreamInferRequest,
    Tensor,
    TensorChunk,
    TensorMeta,
    TensorServiceStub,
    add_TensorServiceServicer_to_server,
)
from quill.tensors import TensorServicer, add_to_server, servicer
from quill.tensors.builtin import builtin_models
from tensors.scene import TensorHost

LIMIT_S = 20
SERVICE = "inference.v1.TensorService"


def float32(values, name="x"):
    array = np.array(values, "<f4")
    return Tensor(meta=TensorMeta(shape=array.shape, dtype=1, name=name), data=array.tobytes())


def frames(tensor, *, pieces=2):
    """A stream as a foreign client writes it."""
    header = InferHeader(model="identity", tensors=[tensor.meta], parameters={})
    yield StreamInferRequest(header=header)
    step = -(-len(tensor.data) // pieces) or 1
    for sequence, start in enumerate(range(0, len(tensor.data), step)):
        yield StreamInferRequest(
            chunk=TensorChunk(sequence=sequence, offset=start, data=tensor.data[start : start + step])
        )


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("add", [add_to_server, add_TensorServiceServicer_to_server])
async def test_a_plain_grpc_server_serves_generated_stubs(add):
    server = grpc.aio.server()
    add(TensorServicer(builtin_models()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tensor = float32([[1, -0.0, np.inf]])
    try:
        async with asyncio.timeout(LIMIT_S), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = TensorServiceStub(channel)
            call = stub.Infer(InferRequest(model="identity", request_id="r", inputs=[tensor]))
            reply = await call
            assert (reply.model, reply.request_id, list(reply.outputs)) == ("identity", "r", [tensor])
            assert ("quill-lane", "inline") in tuple(await call.trailing_metadata())
            replies = [one async for one in stub.StreamInfer(frames(tensor))]
            assert replies[0].header.tensors[0].shape == [1, 3]
            assert b"".join(one.chunk.data for one in replies[1:]) == tensor.data
            assert (await stub.GetTensorModel(GetTensorModelRequest(name="checksum"))).name == "checksum"
            for refused, code in [
                (stub.Infer(InferRequest(model="identity", inputs=[Tensor(meta=tensor.meta)])), "INVALID_ARGUMENT"),
                (stub.Infer(InferRequest(model="zebra")), "NOT_FOUND"),
                (stub.NegotiateLane(NegotiateLaneRequest()), "UNIMPLEMENTED"),
            ]:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await refused
                assert caught.value.code().name == code
    finally:
        await server.stop(0)


def test_json_over_connect_reaches_the_same_servicer(tensor_host):
    with QuillClient(tensor_host.url("connect")) as client:
        data = base64.b64encode(np.array([1, 2], "<f4").tobytes()).decode()
        tensor = {"meta": {"shape": [2], "dtype": "DATA_TYPE_FLOAT32", "name": "x"}, "data": data}
        reply = client.call_json(SERVICE, "Infer", {"model": "scale", "inputs": [tensor], "parameters": {"by": "3"}})
        assert np.frombuffer(base64.b64decode(reply["outputs"][0]["data"]), "<f4").tolist() == [3, 6]
        replies = list(
            client.stream_json(
                SERVICE,
                "StreamInfer",
                [
                    {"header": {"model": "identity", "tensors": [tensor["meta"]]}},
                    {"chunk": {"data": data}},
                ],
            )
        )
        assert replies[1]["chunk"]["data"] == data


def test_outputs_that_no_message_holds_are_sent_in_chunks_only():
    with TensorHost(limits=Limits(max_reply_bytes=3 * 2**20)) as host, QuillClient(host.url("grpc")) as client:
        wanted = {"bytes": str(4 * 2**20)}
        with pytest.raises(ResourceExhausted, match="4194304 bytes and max_reply_bytes is 3145728: call"):
            client.tensors.infer("large", {}, parameters=wanted)
        result = client.tensors.infer("large", {}, parameters=wanted, lane="chunks")
        assert result["y"].tobytes() == np.arange(4 * 2**20, dtype=np.int64).astype(np.uint8).tobytes()


@pytest.mark.parametrize("protocol", ["connect", "grpc"])
def test_memory_of_ended_calls_is_free_for_the_next(protocol):
    limits = Limits(max_receiving_bytes=40 * 2**20)
    large = np.ones(30 * 2**20, np.uint8)
    with TensorHost(limits=limits) as host, QuillClient(host.url(protocol)) as client:
        for _ in range(3):
            assert client.tensors.infer("checksum", {"x": large}, lane="chunks")["x"].shape == (32,)
            with pytest.raises(InvalidArgument, match="has no input 'x'"):
                client.tensors.infer("lies", {"x": large}, lane="chunks")
        with pytest.raises(ResourceExhausted, match=r"41943104 bytes of tensors .* there may be 41943040 at once"):
            client.tensors.infer("checksum", {"x": np.ones(40 * 2**20 + 64, np.uint8)}, lane="chunks")
        assert client.tensors.infer("checksum", {"x": large}, lane="chunks")["x"].shape == (32,)
        gc.collect()
        assert host.servicer._pool.take(40 * 2**20).nbytes == 40 * 2**20


@pytest.mark.parametrize("protocol", ["connect", "grpc"])
def test_refused_requests_are_gone_without_a_collection(tensor_host, protocol):
    request = InferRequest(model="zebra", inputs=[Tensor(meta=TensorMeta(shape=[2**24], dtype=8, name="x"))])
    request.inputs[0].data = bytes(2**24)
    message = request.SerializeToString()
    with QuillClient(tensor_host.url(protocol), max_attempts=1) as client:

        def refuse(times):
            for _ in range(times):
                with pytest.raises(NotFound, match="'zebra' is not known"):
                    client.call(SERVICE, "Infer", message, codec="proto")

        refuse(3)
        gc.collect()
        before = resident_bytes()
        gc.disable()
        try:
            refuse(25)
            assert resident_bytes() - before < 12 * len(message)
        finally:
            gc.enable()


@pytest.mark.parametrize("protocol", ["connect", "grpc"])
async def test_a_caller_that_stops_sending_is_not_waited_for(tensor_host, protocol, monkeypatch):
    monkeypatch.setattr(servicer, "CHUNK_TIMEOUT_S", 0.2)

    async def halting():
        yield next(iter(frames(float32([1, 2])))).SerializeToString()
        await asyncio.Event().wait()

    async with AsyncQuillClient(tensor_host.url(protocol)) as client, asyncio.timeout(LIMIT_S):
        with pytest.raises(Exception, match=r"no message came for 0.2 s, after 0 of 8 bytes") as caught:
            async for _ in client.stream(SERVICE, "StreamInfer", halting(), codec="proto"):
                pass
        assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_a_lane_to_be_negotiated_is_refused(client):
    with pytest.raises(Unimplemented, match="none of the lanes asked for; send chunks"):
        client.call(SERVICE, "NegotiateLane", NegotiateLaneRequest())


def test_a_request_of_garbage_is_refused_with_its_size(client):
    with pytest.raises(InvalidArgument, match=r"the 2 bytes are no inference\.v1\.InferRequest"):
        client.call(SERVICE, "Infer", b"\xff\xff", codec="proto")


def test_chunks_of_our_own_are_those_of_the_contract():
    from quill.lanes.parcel import Parcel
    from quill.tensor import Tensor as Value

    sent = [StreamInferRequest.FromString(one) for one in Frames(Parcel(tensors={"x": Value.from_numpy(np.ones(3))}))]
    assert [one.WhichOneof("part") for one in sent] == ["header", "chunk"]
