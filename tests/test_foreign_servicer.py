"""A servicer that knows nothing of Quill: the OTLP TraceService, and OpenTelemetry's own exporter as its client.

OTLP over HTTP writes trace and span ids in hex. Over Connect the same message is ProtoJSON, where bytes are base64.
"""

import asyncio
import base64
import hashlib
import json
import logging

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from google.rpc import code_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

import quill
from quill.client.transport import ResponseMetadata
from support.http1 import ask, enveloped, post

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
EXPORT = f"/{SERVICE}/Export"
JSON = "application/json"
SECRET = "canary-otlp-5d17"  # noqa: S105 - one that opens nothing
TAKES_GZIP = tuple(map(int, grpc.__version__.split(".")[:2])) >= (1, 84)
"""Older servers refuse compressed requests, which they could not bound."""
PARTIAL = messages.ExportTracePartialSuccess(rejected_spans=2, error_message="2 spans were too old")


class Collector(services.TraceServiceServicer):
    """Keeps what it is sent, as the collectors of others do."""

    def __init__(self, reply=None):
        self.requests = []
        self.metadata = []
        self._reply = reply or messages.ExportTraceServiceResponse()

    async def Export(self, request, context):  # noqa: N802 - the name in the contract
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        return self._reply


class BlockingCollector(services.TraceServiceServicer):
    """As servicers for grpcio's threaded server are written."""

    def Export(self, request, context):  # noqa: N802 - the name in the contract
        if not request.resource_spans:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no spans")
        return messages.ExportTraceServiceResponse(partial_success=PARTIAL)


class Counting(grpc.aio.ServerInterceptor):
    """Counts calls by method."""

    def __init__(self):
        self.methods = []

    async def intercept_service(self, continuation, details):
        self.methods.append(details.method)
        return await continuation(details)


def serving(servicer, **options):
    server = quill.Server("127.0.0.1:0", "127.0.0.1:0", **options)
    services.add_TraceServiceServicer_to_server(servicer, server)
    return server


@pytest.fixture(scope="module")
def spans():
    """What a traced program leaves: a tree of two spans and one of another library."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "quill tests", "shards": [1, 2, 3]}))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("first", "1.2", schema_url="https://opentelemetry.io/schemas/1.30.0")
    elsewhere = SpanContext(0x0123456789ABCDEF0123456789ABCDEF, 0xFEDCBA9876543210, True, TraceFlags(1))
    with tracer.start_as_current_span("parent", kind=SpanKind.SERVER, links=[Link(elsewhere, {"why": "batch"})]) as one:
        one.set_attributes({"text": "Grüße, 世界", "count": -(2**53) - 1, "ratio": 0.1, "ok": True, "many": ["a", "b"]})
        one.add_event("cache miss", {"key": "k1"}, timestamp=1_700_000_000_123_456_789)
        with tracer.start_as_current_span("child", kind=SpanKind.CLIENT) as two:
            two.set_status(Status(StatusCode.ERROR, "upstream said no"))
    provider.get_tracer("second").start_span("alone").end()
    yield kept.get_finished_spans()
    provider.shutdown()


def told(spans):
    """What the SDK's spans say, field by field, in the order of their names."""
    return sorted(
        (
            {
                "name": span.name,
                "trace": span.context.trace_id.to_bytes(16, "big"),
                "span": span.context.span_id.to_bytes(8, "big"),
                "parent": span.parent.span_id.to_bytes(8, "big") if span.parent else b"",
                "kind": span.kind.value + 1,  # SPAN_KIND_UNSPECIFIED is 0
                "start": span.start_time,
                "end": span.end_time,
                "attributes": plain(span.attributes),
                "events": [(event.name, event.timestamp, plain(event.attributes)) for event in span.events],
                "links": [
                    (
                        link.context.trace_id.to_bytes(16, "big"),
                        link.context.span_id.to_bytes(8, "big"),
                        plain(link.attributes),
                    )
                    for link in span.links
                ],
                # UNSET, OK, ERROR in both
                "status": (span.status.status_code.value, span.status.description or ""),
                "resource": plain(span.resource.attributes),
                "scope": (span.instrumentation_scope.name, span.instrumentation_scope.version or ""),
                "schema": span.instrumentation_scope.schema_url or "",
            }
            for span in spans
        ),
        key=lambda span: span["name"],
    )


def plain(attributes):
    return {key: list(value) if isinstance(value, tuple) else value for key, value in attributes.items()}


def received(request):
    """What the message says, field by field."""
    return sorted(
        (
            {
                "name": span.name,
                "trace": span.trace_id,
                "span": span.span_id,
                "parent": span.parent_span_id,
                "kind": span.kind,
                "start": span.start_time_unix_nano,
                "end": span.end_time_unix_nano,
                "attributes": values(span.attributes),
                "events": [(event.name, event.time_unix_nano, values(event.attributes)) for event in span.events],
                "links": [(link.trace_id, link.span_id, values(link.attributes)) for link in span.links],
                "status": (span.status.code, span.status.message),
                "resource": values(group.resource.attributes),
                "scope": (scope.scope.name, scope.scope.version),
                "schema": scope.schema_url,
            }
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ),
        key=lambda span: span["name"],
    )


def values(attributes):
    return {entry.key: value_of(entry.value) for entry in attributes}


def value_of(value):
    kind = value.WhichOneof("value")
    return [value_of(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


async def export(server, spans, **options):
    """Send spans with OpenTelemetry's exporter, which blocks, from a thread."""

    def send():
        exporter = OTLPSpanExporter(endpoint=server.grpc_address, insecure=True, timeout=20, **options)
        try:
            return exporter.export(spans)
        finally:
            exporter.shutdown()

    return await asyncio.to_thread(send)


@pytest.fixture
async def sent(spans):
    """The request that the exporter made of the spans, as the server has taken it over gRPC."""
    collector = Collector()
    async with serving(collector) as server:
        assert await export(server, spans) is SpanExportResult.SUCCESS
    (request,) = collector.requests
    return request


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, *([grpc.Compression.Gzip] * TAKES_GZIP)])
async def test_the_exporters_spans_arrive_field_by_field(spans, compression):
    collector = Collector()
    async with serving(collector) as server:
        result = await export(server, spans, compression=compression, headers={"x-tenant": "blue"})
    assert result is SpanExportResult.SUCCESS
    (request,) = collector.requests
    assert type(request) is messages.ExportTraceServiceRequest
    assert received(request) == told(spans)
    assert collector.metadata[0]["x-tenant"] == "blue"


async def test_the_same_request_as_json_over_connect_is_the_same_message(spans, sent):
    collector = Collector()
    async with serving(collector) as server:
        reply = await post(server.http_url, EXPORT, JSON, json_format.MessageToJson(sent).encode())
        assert (reply.status, reply["content-type"], reply.body) == (200, JSON, b"{}")
    (request,) = collector.requests
    assert request == sent
    assert received(request) == told(spans)


async def test_a_document_written_by_hand_is_understood():
    trace, span = bytes(range(16)), bytes(range(8))
    document = {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": base64.b64encode(trace).decode(),
                                "span_id": base64.urlsafe_b64encode(span).decode().rstrip("="),
                                "name": "by hand",
                                "kind": "SPAN_KIND_PRODUCER",
                                "startTimeUnixNano": "18446744073709551615",
                                "attributes": [{"key": "n", "value": {"intValue": "-9223372036854775808"}}],
                                "status": {"code": 1},
                                "fieldOfALaterOtlp": {"is": "ignored"},
                            }
                        ]
                    }
                ]
            }
        ]
    }
    collector = Collector()
    async with serving(collector) as server:
        assert (await post(server.http_url, EXPORT, JSON, json.dumps(document).encode())).status == 200
    (seen,) = received(collector.requests[0])
    assert (seen["trace"], seen["span"], seen["kind"]) == (trace, span, 4)
    assert (seen["start"], seen["attributes"], seen["status"]) == (2**64 - 1, {"n": -(2**63)}, (1, ""))


async def test_ids_in_hex_as_otlp_writes_them_over_http_are_taken_for_base64():
    """Hex digits are base64 digits too, so a servicer that cares looks at the length: 24 bytes instead of 16."""
    collector = Collector()
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "5b8efff798038103d269b633813fc60c"}]}]}]}
    async with serving(collector) as server:
        assert (await post(server.http_url, EXPORT, JSON, json.dumps(document).encode())).status == 200
    (seen,) = received(collector.requests[0])
    assert seen["trace"] == base64.b64decode("5b8efff798038103d269b633813fc60c")
    assert len(seen["trace"]) == 24


@pytest.mark.parametrize("content_type", ["application/proto", "application/grpc-web+proto"])
async def test_the_same_bytes_over_http_are_the_same_message(sent, content_type):
    collector = Collector(messages.ExportTraceServiceResponse(partial_success=PARTIAL))
    body = sent.SerializeToString()
    is_web = "grpc" in content_type
    async with serving(collector) as server:
        reply = await post(server.http_url, EXPORT, content_type, enveloped(body) if is_web else body)
        data = reply.messages()[0] if is_web else reply.body
        assert messages.ExportTraceServiceResponse.FromString(data).partial_success == PARTIAL
    assert collector.requests == [sent]


@pytest.mark.parametrize("protocol", ["connect", "grpc", "grpc-web"])
@pytest.mark.parametrize("compresses", [False, True])
async def test_quills_client_calls_it_with_a_dict(sent, protocol, compresses):
    """Over gRPC and gRPC-Web by reflection."""
    collector = Collector(messages.ExportTraceServiceResponse(partial_success=PARTIAL))
    async with serving(collector, reflection=True, compression=True) as server:
        address = server.http_url if protocol != "grpc" else f"grpc://{server.grpc_address}"
        async with quill.AsyncQuillClient(address, enable_compression=compresses, protocol=protocol) as client:
            reply = await client.call_json(SERVICE, "Export", json_format.MessageToDict(sent))
    assert reply == {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "2 spans were too old"}}
    assert collector.requests == [sent]


async def test_a_blocking_servicer_answers_partial_success_and_its_own_errors(spans, sent, caplog):
    async with serving(BlockingCollector()) as server:
        with caplog.at_level(logging.WARNING):
            assert await export(server, spans) is SpanExportResult.SUCCESS
        async with grpc.aio.insecure_channel(server.grpc_address) as channel:
            reply = await services.TraceServiceStub(channel).Export(sent)
        assert reply.partial_success == PARTIAL
        reply = await post(server.http_url, EXPORT, JSON, b"{}")
        assert (reply.status, reply.json()) == (400, {"code": "invalid_argument", "message": "no spans"})


async def test_an_interceptor_sees_the_exporter_and_the_json_caller(spans, sent):
    counting = Counting()
    async with serving(Collector(), interceptors=[counting]) as server:
        await export(server, spans)
        await post(server.http_url, EXPORT, JSON, json_format.MessageToJson(sent).encode())
    assert counting.methods == [EXPORT, EXPORT]


async def test_the_exporters_headers_are_its_credentials(spans, sent, tmp_path, caplog):
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    keys.write_text(f'[[key]]\nname = "traces"\nsha256 = "{digest}"\nallow = ["{SERVICE}/Export"]\n')
    collector = Collector()
    async with serving(collector, auth=quill.Auth(keys), reflection=True) as server:
        assert await export(server, spans, headers={"x-api-key": "wrong"}) is SpanExportResult.FAILURE
        assert "UNAUTHENTICATED" in caplog.text
        assert collector.requests == []
        for headers in ({"authorization": f"Bearer {SECRET}"}, {"x-api-key": SECRET}):
            assert await export(server, spans, headers=headers) is SpanExportResult.SUCCESS
        body = json_format.MessageToJson(sent).encode()
        assert (await post(server.http_url, EXPORT, JSON, body)).status == 401
        reply = await post(server.http_url, EXPORT, JSON, body, [("authorization", f"Bearer {SECRET}")])
        assert reply.status == 200
    assert len(collector.requests) == 3
    assert received(collector.requests[2]) == told(spans)


async def test_reflection_describes_it_with_all_that_it_imports():
    def read(address):
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            file = database.FindFileContainingSymbol(SERVICE)
            return database.get_services(), file, [database.FindFileByName(name) for name in file.dependency]

    async with serving(Collector(), reflection=True) as server:
        listed, file, imported = await asyncio.to_thread(read, server.grpc_address)
    assert SERVICE in listed
    assert file.SerializeToString() == messages.DESCRIPTOR.serialized_pb
    assert [one.name for one in imported] == ["opentelemetry/proto/trace/v1/trace.proto"]


async def test_what_is_no_document_of_its_type_is_refused_by_name():
    collector = Collector()
    document = b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "not base64!"}]}]}]}'
    async with serving(collector) as server:
        reply = await post(server.http_url, EXPORT, JSON, document)
        assert (reply.status, reply.json()["code"]) == (400, "invalid_argument")
        assert reply.json()["message"].startswith("resourceSpans[0].scopeSpans[0].spans[0].traceId: expected base64")
        assert (await ask(server.http_url, "GET", EXPORT)).status == 405
    assert collector.requests == []


async def test_the_blocking_client_fills_in_what_the_servicer_said_besides(sent):
    class Chatty(services.TraceServiceServicer):
        async def Export(self, request, context):  # noqa: N802 - the name in the contract
            await context.send_initial_metadata((("x-began", "yes"),))
            context.set_trailing_metadata((("x-ended", "yes"),))
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down")

    async with serving(Chatty()) as server:
        for address in (server.http_url, f"grpc://{server.grpc_address}"):

            def call(address=address):
                response = ResponseMetadata()
                with quill.QuillClient(address) as client, pytest.raises(quill.ResourceExhausted) as raised:
                    client.call(SERVICE, "Export", sent, response=response)
                return raised.value, dict(response.trailers)

            error, trailers = await asyncio.to_thread(call)
            assert (error.code.value, error.message) == (code_pb2.RESOURCE_EXHAUSTED, "slow down")
            assert trailers["x-ended"] == "yes"
