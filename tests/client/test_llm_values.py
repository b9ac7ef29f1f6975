"""Embeddings, tokens and models over every protocol, against the real service; and replies that are wrong."""

import ml_dtypes
import numpy as np
import pytest

from client.test_llm_request import Recorder
from quill import (
    DType,
    Internal,
    InvalidArgument,
    InvalidType,
    InvalidUsage,
    NotFound,
    Tensor,
    Token,
    Unimplemented,
    Usage,
    proto,
)
from quill.adapters.ngram.backend import NgramBackend
from quill.client.llm.sync_llm import LLM
from quill.llm.servicer import LLMServicer
from quill.proto import LLMServiceServicer, add_LLMServiceServicer_to_server
from quill.server.server import Server

TEXTS = ["The Queen of Hearts", "she made some tarts", "Alice was beginning to get very tired", "é"]


@pytest.fixture(scope="module")
def servers(host):
    """Servers of the embedded model, and of a service that offers nothing."""
    backend = NgramBackend()
    servicer = LLMServicer(backend)

    async def start(what):
        server = Server("127.0.0.1:0", "127.0.0.1:0")
        add_LLMServiceServicer_to_server(what, server)
        await server.start()
        return server

    async def stop():
        for server in started.values():
            await server.stop(0)
        await servicer.aclose()
        await backend.aclose()

    started = {"real": host.run(start(servicer)), "bare": host.run(start(LLMServiceServicer()))}
    yield started
    host.run(stop())


@pytest.fixture(params=["connect", "grpc", "grpc-web"])
def client_of(request, servers, drive):
    """Makes clients of a server, of either kind and over each protocol."""

    def make(name):
        server = servers[name]
        url = f"grpc://{server.grpc_address}" if request.param == "grpc" else server.http_url
        return drive(url, protocol=request.param)

    return make


@pytest.fixture
def real(client_of):
    return client_of("real")


@pytest.fixture(scope="module")
def oracle():
    """The means of what the embedder itself gives, without a server."""
    embedder = NgramBackend().models()[0].embedder
    tokenizer = NgramBackend().model.tokenizer

    async def vectors(texts):
        inputs = [tokenizer.encode(text) for text in texts]
        return [event.values.mean(axis=0) async for event in embedder.embed(inputs) if hasattr(event, "values")]

    return vectors


def test_embeddings_are_one_array_in_the_order_of_the_inputs(real, oracle, host):
    expected = np.stack(host.run(oracle(TEXTS)))
    got = real.ask("embed", TEXTS, normalize=False)
    assert (got.vectors.shape, got.vectors.dtype, len(got), got.dimensions) == ((4, 256), np.float32, 4, 256)
    assert got.vectors.flags.writeable
    assert np.allclose(got.vectors, expected)
    assert got.model == "ngram-alice"
    assert got.usage.prompt_tokens > 4
    assert [np.array_equal(one, row) for one, row in zip(got, got.vectors, strict=True)] == [True] * 4
    assert np.array_equal(got[-1], got.vectors[3])
    for shuffled in (TEXTS[::-1], TEXTS[2:] + TEXTS[:2]):
        again = real.ask("embed", shuffled, normalize=False)
        assert np.array_equal(again[shuffled.index(TEXTS[0])], got[0])


def test_an_input_is_a_text_token_ids_or_several_of_both(real):
    ids = real.ask("tokenize", TEXTS[0]).ids
    one = real.ask("embed", TEXTS[0])
    assert one.vectors.shape == (1, 256)
    assert np.array_equal(real.ask("embed", ids).vectors, one.vectors)
    assert np.array_equal(real.ask("embed", np.array(ids)).vectors, one.vectors)
    both = real.ask("embed", [TEXTS[0], list(ids), np.array(ids)])
    assert np.array_equal(both.vectors, np.repeat(one.vectors, 3, axis=0))


def test_every_option_of_embeddings_has_its_effect(real):
    text = TEXTS[2]
    plain = real.ask("embed", text, normalize=False, model="ngram")
    unit = real.ask("embed", text, normalize=True)
    assert np.linalg.norm(unit[0]) == pytest.approx(1)
    assert np.allclose(unit[0], plain[0] / np.linalg.norm(plain[0]))
    rows = real.ask("embed", [text, "a"], pooling="none", normalize=False)
    tokens = len(real.ask("tokenize", text))
    assert rows.rows[0] == tokens == len(rows[0])
    assert (len(rows), len(rows.vectors), rows.dimensions) == (2, sum(rows.rows), 256)
    assert np.array_equal(np.concatenate(list(rows)), rows.vectors)
    for pooling, pooled in {
        "mean": rows[0].mean(axis=0),
        "max": rows[0].max(axis=0),
        "cls": rows[0][0],
        "last": rows[0][-1],
    }.items():
        assert np.allclose(real.ask("embed", text, pooling=pooling, normalize=False)[0], pooled)
    for dtype, kind in {
        DType.float16(): np.float16,
        DType.bfloat16(): ml_dtypes.bfloat16,
        DType.float64(): np.float64,
    }.items():
        assert real.ask("embed", text, dtype=dtype).vectors.dtype == kind


def test_embeddings_that_the_server_refuses_are_its_errors(real, client_of):
    with pytest.raises(InvalidArgument, match="dimensions=257"):
        real.ask("embed", "x", dimensions=257)
    with pytest.raises(InvalidArgument, match=r"inputs\[1\].text is empty"):
        real.ask("embed", ["a", ""])
    with pytest.raises(NotFound, match="gpt"):
        real.ask("embed", "x", model="gpt")
    for method, argument in (("embed", "x"), ("tokenize", "x"), ("detokenize", [1]), ("model", "m")):
        with pytest.raises(Unimplemented):
            client_of("bare").ask(method, argument)


@pytest.mark.parametrize(
    ("inputs", "options", "kind", "named"),
    [
        ([], {}, InvalidUsage, "nothing to embed"),
        (b"text", {}, InvalidType, "'inputs'"),
        (["a", b"b"], {}, InvalidType, r"'inputs\[1\]'"),
        ([[1, -1]], {}, InvalidUsage, r"inputs\[0\]\[1\]"),
        ([1, "a"], {}, InvalidType, r"'inputs\[0\]'"),
        (5, {}, InvalidType, "'inputs'"),
        ("\ud800", {}, InvalidUsage, "'inputs.text'"),
        ("a", {"pooling": "avg"}, InvalidUsage, "one of mean, cls, last, max, none, got 'avg'"),
        ("a", {"dtype": "float32"}, InvalidType, "dtype"),
        ("a", {"dimensions": -1}, InvalidUsage, "'dimensions'.*-1"),
        ("a", {"model": 5}, InvalidType, "'model'"),
    ],
)
def test_what_cannot_be_embedded_is_refused_before_it_is_sent(inputs, options, kind, named):
    recorder = Recorder()
    with pytest.raises(kind, match=named):
        LLM(recorder).embed(inputs, **options)
    assert recorder.sent == []


def tensors(*arrays):
    return proto.EmbedResponse(embeddings=[Tensor.from_numpy(np.asarray(a, np.float32)).to_proto() for a in arrays])


BROKEN = proto.EmbedResponse(embeddings=[proto.Tensor(meta={"shape": [3], "dtype": 1}, data=b"1234")])


@pytest.mark.parametrize(
    ("reply", "options", "message"),
    [
        (tensors([1, 2]), {}, "1 embeddings for 2 inputs"),
        (tensors([1, 2], [1, 2], [1, 2]), {}, "3 embeddings for 2 inputs"),
        (tensors([1, 2], [1, 2, 3]), {}, "embedding 1 of the reply has 3 dimensions, expected 2"),
        (tensors([1, 2], [1, 2]), {"dimensions": 3}, "embedding 0 of the reply has 2 dimensions, expected 3"),
        (tensors([[1, 2]], [1, 2]), {}, r"embedding 0 of the reply has shape \[1, 2\], expected \[dimensions\]"),
        (tensors([[1, 2]], [1, 2]), {"pooling": "none"}, r"embedding 1 .*shape \[2\], expected \[tokens, dim"),
        (tensors([], []), {}, r"shape \[0\]"),
        (tensors([1, 2], [1, 2]), {"dtype": DType.float64()}, "is float32, expected float64"),
        (proto.EmbedResponse(embeddings=[*BROKEN.embeddings, *BROKEN.embeddings]), {}, "is no tensor: .*12 bytes"),
        (proto.Tensor(data=b"1234"), {}, r"the 6 bytes of the reply are no inference\.v1\.EmbedResponse"),
    ],
)
def test_a_reply_without_the_form_that_was_asked_for_is_an_error(reply, options, message):
    """No real server sends these."""
    with pytest.raises(Internal, match=message):
        LLM(Recorder(reply)).embed(["a", "b"], **options)


def test_text_becomes_tokens_and_tokens_text(real):
    for text in [*TEXTS, "", "日本語 \n 🙂"]:
        tokens = real.ask("tokenize", text, add_special_tokens=False)
        assert tokens.ids == tuple(NgramBackend().model.tokenizer.encode(text))
        assert "".join(tokens.texts) == text
        assert b"".join(token.data for token in tokens.tokens).decode() == text
        assert (len(tokens), tokens.context_length) == (len(tokens.ids), 2048)
        assert real.ask("detokenize", tokens.ids) == text


def test_a_conversation_is_tokenized_as_it_is_generated_from(real):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    tokens = real.ask("tokenize", messages=messages)
    assert real.ask("detokenize", tokens.ids) == "system: Be brief.\nuser: Who?\nassistant:"
    generation = real.ask("generate", messages=messages, max_tokens=1, echo=True)
    assert tuple(token.id for token in generation.prompt_tokens) == tokens.ids


def test_control_tokens_are_shown_only_where_that_is_asked_for(real):
    end = real.ask("model", "ngram").eos_token_ids[0]
    assert real.ask("detokenize", [end]) == ""
    assert real.ask("detokenize", [end], skip_special_tokens=False) != ""


def test_tokens_that_cannot_be_are_refused(real):
    with pytest.raises(InvalidArgument, match="token 9999"):
        real.ask("detokenize", [9999])
    with pytest.raises(InvalidUsage, match=r"token_ids\[0\]"):
        real.ask("detokenize", [-1])
    with pytest.raises(InvalidType, match="'token_ids'"):
        real.ask("detokenize", "12")
    with pytest.raises(InvalidUsage, match="exactly one of text, messages"):
        real.ask("tokenize")
    with pytest.raises(InvalidUsage, match="exactly one of text, messages"):
        real.ask("tokenize", "a", messages=[{"role": "user"}])


def test_tokens_without_ids_are_an_error():
    """The embedded model tells ids."""
    reply = proto.TokenizeResponse(tokens={"tokens": [{"id": 0, "text": "a"}, {"text": "b"}]})
    with pytest.raises(Internal, match="2 tokens, and ids for 1"):
        LLM(Recorder(reply)).tokenize("ab")


def test_one_model_is_found_by_name_and_alias(real):
    (model,) = real.models()
    assert real.ask("model", "ngram-alice") == real.ask("model", "ngram") == model
    with pytest.raises(NotFound, match="ngram-alice"):
        real.ask("model", "gpt")


def test_prompt_tokens_come_with_their_log_probabilities(real):
    whole = real.ask("generate", "Alice was", prompt_logprobs=2, max_tokens=1)
    assert "".join(token.text for token in whole.prompt_tokens) == "Alice was"
    assert whole.prompt_tokens[0].logprob is None
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in whole.prompt_tokens[1:])
    stream, _ = real.generation("Alice was", prompt_logprobs=2, max_tokens=1)
    assert stream.prompt_tokens == real.result(stream).prompt_tokens == whole.prompt_tokens


def test_an_echo_tells_the_prompts_tokens(real):
    plain = real.ask("generate", "Alice was", max_tokens=3, seed=1)
    assert plain.prompt_tokens == ()
    for options in ({}, {"prompt_logprobs": 0}):
        echoed = real.ask("generate", "Alice was", max_tokens=3, seed=1, echo=True, n=2, **options)
        count = len(echoed.prompt_tokens)
        assert count == echoed.usage.prompt_tokens
        for choice in echoed.choices:
            ids = [token.id for token in choice.tokens]
            assert ids[:count] == [token.id for token in echoed.prompt_tokens]
        assert echoed.text == "Alice was" + plain.text
        assert [token.logprob for token in echoed.prompt_tokens].count(None) == (1 if options else count)


def test_choices_are_in_order_whatever_the_order_of_the_reply():
    """No real server of ours sends them in another."""
    reply = proto.GenerateResponse(
        choices=[{"sequence_id": 1, "text": "b"}, {"sequence_id": 0, "text": "a"}],
        prompt_token_batch={"tokens": [{"id": 7, "text": "x"}]},
        usage={"prompt_tokens": 1},
    )
    whole = LLM(Recorder(reply)).generate("x")
    assert [choice.text for choice in whole.choices] == ["a", "b"]
    assert whole.text == "a"
    assert whole.prompt_tokens == (Token(7, 0, "x"),)
    assert whole.usage == Usage(prompt_tokens=1)
