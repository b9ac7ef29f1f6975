"""What goes over the wire and comes back: JSON, bytes, messages, in every kind, of every size."""

import pytest

import quill
from protocol_table.table import case, for_each, for_each_kind
from support.probe import SERVICE, Answer, Ask

MIB = 1024 * 1024
UNICODE = "h\u00e9 \u4e16\u754c \U0001d11e \u0000 \u2028"


@case
def unary_with_json(row):
    assert row.caller.json(SERVICE, "Unary", {"text": "x"}) == {"text": "x"}


@case
def unary_with_protobuf_bytes(row):
    reply = row.caller.bytes(SERVICE, "Unary", Ask(text="x").SerializeToString())
    assert Answer.FromString(reply) == Answer(text="x")


@case
def unary_with_a_message(row):
    assert row.caller.bytes(SERVICE, "Unary", Ask(text="x")) == Answer(text="x")


@case
def unary_with_json_bytes(row):
    assert row.caller.bytes(SERVICE, "Unary", b'{"text": "x"}') == b'{"text":"x"}'


@case
def server_streaming_keeps_order(row):
    seen, error = row.caller.run("stream", {"text": "a", "count": 3})
    assert seen == [{"text": "a"}, {"text": "a", "count": 1}, {"text": "a", "count": 2}]
    assert error is None


@case
def client_streaming_takes_every_request(row):
    assert row.caller.run("collect", *({"text": word} for word in "abc")) == ([{"text": "a,b,c"}], None)


@case
def bidirectional_half_duplex_answers_every_request(row):
    replies = [{"text": "A"}, {"text": "B"}, {"text": "C"}]
    assert row.caller.run("chat", *({"text": word} for word in "abc")) == (replies, None)


@for_each("bytes", "messages")
def streams_of(row, form):
    def asks(*texts):
        made = [Ask(text=text) for text in texts]
        return made if form == "messages" else [ask.SerializeToString() for ask in made]

    def texts(replies):
        return [(reply if form == "messages" else Answer.FromString(reply)).text for reply in replies]

    one = Ask(text="a", count=2) if form == "messages" else Ask(text="a", count=2).SerializeToString()
    assert texts(row.caller.messages("Stream", one)) == ["a", "a"]
    assert texts(row.caller.messages("Collect", iter(asks("a", "b")))) == ["a,b"]
    assert texts(row.caller.messages("Chat", iter(asks("a", "b")))) == ["A", "B"]


@case
def a_stream_of_no_replies_ends_well(row):
    assert row.caller.run("stream", {"text": "a"}) == ([], None)


@for_each("collect", "chat")
def a_stream_of_no_requests_ends_well(row, kind):
    assert row.caller.run(kind) == ([{}] if kind == "collect" else [], None)


@for_each_kind
def empty_messages_are_messages(row, kind):
    ask = {"count": 2} if kind == "stream" else {}
    seen, error = row.caller.run(kind, ask)
    assert error is None
    assert seen == ([{}, {"count": 1}] if kind == "stream" else [{}])


@case
def an_empty_request_and_reply_are_no_bytes(row):
    assert row.caller.bytes(SERVICE, "Unary", b"") == b""


@for_each_kind
def text_beyond_ascii_comes_back_as_it_was(row, kind):
    seen, error = row.caller.run(kind, {"text": UNICODE, "count": 1})
    assert error is None
    assert seen == [{"text": UNICODE.upper() if kind == "chat" else UNICODE}]


@for_each_kind
def large_messages_go_both_ways(row, kind):
    ask = Ask(blob=bytes(range(256)) * (2 * MIB // 256), count=2)
    if kind == "unary":
        replies = [row.caller.bytes(SERVICE, "Unary", ask)]
    else:
        replies = row.caller.messages(kind.title(), ask if kind == "stream" else iter([ask]))
    if kind == "collect":
        assert replies == [Answer(count=2 * MIB)]
    else:
        assert [len(reply.blob) for reply in replies] == [2 * MIB] * len(replies)
        assert replies[-1].blob == ask.blob


@for_each_kind
def compressed_both_ways(row, kind):
    """A request and a reply that shrink to little, counted on the way."""
    caller, relay = row.through_relay(enable_compression=True)
    ask = Ask(text="warm", count=1)
    one = kind in {"unary", "stream"}
    _send(caller, kind, ask if one else iter([ask]))
    up_bytes, down_bytes = relay.up_bytes, relay.down_bytes
    big = Ask(text="a" * MIB, count=1)
    assert [len(reply.text) for reply in _send(caller, kind, big if one else iter([big]))] == [MIB]
    assert relay.down_bytes - down_bytes < MIB / 10
    # Requests in an iterator could not be sent again, so they are not compressed over HTTP.
    is_compressed = one or row.cell.protocol == "grpc"
    assert (relay.up_bytes - up_bytes < MIB / 10) is is_compressed


def _send(caller, kind, request):
    if kind == "unary":
        return [caller.bytes(SERVICE, "Unary", request)]
    return caller.messages(kind.title(), request)


@for_each("count", "text")
def a_mistyped_json_field_is_named(row, field):
    with pytest.raises(quill.InvalidArgument, match=field):
        row.caller.json(SERVICE, "Unary", {field: "many" if field == "count" else 5})
