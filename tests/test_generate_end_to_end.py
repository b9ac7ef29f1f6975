"""The embedded model through server and client: equal over every protocol, and what an oracle expects."""

import json
import math
import subprocess

import pytest

import quill

LLM = "inference.v1.LLMService"


@pytest.fixture(params=["http", "grpc"])
def client(request, server):
    url = server["http"] if request.param == "http" else "grpc://" + server["grpc"]
    with quill.QuillClient(url) as client:
        yield client


def without_times(answer):
    return {key: value for key, value in answer.items() if key not in {"requestId", "timings"}}


def test_call_json_is_equal_over_both_protocols(server):
    request = {"prompt": "The Mock Turtle", "max_tokens": 20, "seed": 11, "logprobs": 3}
    with quill.QuillClient(server["http"]) as connect, quill.QuillClient("grpc://" + server["grpc"]) as grpc:
        over_connect = connect.call_json(LLM, "Generate", request)
        over_grpc = grpc.call_json(LLM, "Generate", request)
    assert without_times(over_connect) == without_times(over_grpc)
    assert over_connect["usage"]["completionTokens"] == 20


def test_curl_gets_one_json_object(server):
    url = f"{server['http']}/{LLM}/Generate"
    body = '{"prompt":"Hello","max_tokens":5,"seed":1,"ignore_eos":true}'
    command = ["curl", "--silent", "--fail", "-H", "content-type: application/json", "-d", body, url]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)
    tokens = answer["choices"][0]["tokens"]["tokens"]
    assert answer["text"] == answer["choices"][0]["text"] == "".join(token["text"] for token in tokens)
    assert answer["usage"] == {"promptTokens": 3, "completionTokens": 5}


def test_a_stream_gives_what_generate_gives(client):
    options = {"max_tokens": 40, "seed": 5, "logprobs": 2}
    whole = client.llm.generate("The Duchess", **options)
    with client.llm.stream("The Duchess", **options) as stream:
        deltas = list(stream)
        streamed = stream.result()
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [token for delta in deltas for token in delta.tokens] == list(whole.tokens)
    assert streamed.choices == whole.choices
    assert (streamed.usage, streamed.seed) == (whole.usage, 5)


def test_stop_strings_match_across_token_borders(client):
    whole = client.llm.generate("The Duchess", max_tokens=60, seed=5, ignore_eos=True)
    texts = [token.text for token in whole.tokens]
    # For every border between two tokens, a stop of the last letter before and the first letter after it.
    for border in range(1, 12):
        stop = texts[border - 1][-1:] + texts[border][:1]
        stopped = client.llm.generate("The Duchess", max_tokens=60, seed=5, ignore_eos=True, stop=[stop])
        assert stopped.text == whole.text[: whole.text.index(stop)]
        assert stopped.choices[0].finish == quill.Finish(quill.FinishReason.STOP, stop_text=stop)
        kept = client.llm.generate(
            "The Duchess", max_tokens=60, seed=5, ignore_eos=True, stop=[stop], include_stop=True
        )
        assert kept.text == whole.text[: whole.text.index(stop) + len(stop)]


def test_a_character_split_over_tokens_is_never_broken(client):
    text = "naïve 🐇 — 兔"
    with client.llm.stream("Alice", response_format={"choice": {"values": [text]}}, max_tokens=60) as stream:
        pieces = [token for delta in stream for token in delta.tokens]
    assert "".join(token.text for token in pieces) == text
    assert b"".join(token.data for token in pieces) == text.encode()
    assert all("\ufffd" not in token.text for token in pieces)
    assert len(pieces) > len(text)  # bytes outside ASCII are tokens of their own: characters were split


def test_logprobs_are_those_of_a_distribution(client):
    first = client.llm.generate("Alice was", max_tokens=1, seed=1, logprobs=20)
    (token,) = first.tokens
    probabilities = [math.exp(candidate.logprob) for candidate in token.top_logprobs]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(probabilities) == 20
    assert sum(probabilities) <= 1 + 1e-6
    greedy = client.llm.generate("Alice was", max_tokens=1, temperature=0, logprobs=1).tokens[0]
    assert greedy.id == token.top_logprobs[0].id
    assert greedy.logprob == token.top_logprobs[0].logprob


@pytest.mark.parametrize(
    ("request_json", "error", "named"),
    [
        ({}, quill.InvalidArgument, ["prompt", "prompt_token_ids", "messages"]),
        ({"prompt": "a", "prompt_token_ids": [1]}, quill.InvalidArgument, ["prompt", "prompt_token_ids"]),
        ({"prompt": "a", "temperature": -0.5}, quill.InvalidArgument, ["temperature", "-0.5"]),
        ({"prompt": "a", "top_p": 0}, quill.InvalidArgument, ["top_p", "0"]),
        ({"prompt": "a", "top_p": 1.5}, quill.InvalidArgument, ["top_p", "1.5"]),
        ({"prompt": "a", "n": 0}, quill.InvalidArgument, ["n", "0"]),
        ({"prompt": "a", "presence_penalty": 1}, quill.InvalidArgument, ["presence_penalty", "1"]),
        ({"prompt": "a", "response_format": {"regex": "x+"}}, quill.InvalidArgument, ["response_format.regex"]),
        ({"prompt": "a", "model": "gpt"}, quill.NotFound, ["gpt", "ngram-alice"]),
        ({"promt": "a"}, quill.InvalidArgument, ["promt"]),
        ({"prompt": "a", "max_tokens": "ten"}, quill.InvalidArgument, ["max_tokens", "ten"]),
        ({"prompt": "a", "max_tokens": 4000}, quill.InvalidArgument, ["max_tokens", "4000", "2048"]),
        ({"prompt": "a" * 5_000_000}, quill.ResourceExhausted, ["5000000", "4194304"]),
    ],
)
@pytest.mark.parametrize("method", ["Generate", "StreamGenerate"])
def test_bad_input_is_refused_by_name_and_value(client, method, request_json, error, named):
    call = client.call_json if method == "Generate" else lambda *args: list(client.stream_json(*args))
    with pytest.raises(error) as caught:
        call(LLM, method, request_json)
    for word in named:
        assert word in caught.value.message


def test_a_message_over_the_limit_is_refused_and_the_server_serves_on(client):
    with pytest.raises(quill.ResourceExhausted):
        client.call(LLM, "Generate", bytes(65 * 1024 * 1024), codec="proto")
    assert client.health_check() is True


def test_embed_is_equal_over_both_protocols(server):
    request = {"inputs": [{"text": "Alice"}, {"text": "The Queen"}]}
    with quill.QuillClient(server["http"]) as connect, quill.QuillClient("grpc://" + server["grpc"]) as grpc:
        over_connect = connect.call_json(LLM, "Embed", request)
        over_grpc = grpc.call_json(LLM, "Embed", request)
    assert over_connect == over_grpc
    assert len(over_connect["embeddings"]) == 2


def test_tokenize_and_detokenize_undo_each_other(client):
    text = "Alice was naïve 🐇"
    tokens = client.call_json(LLM, "Tokenize", {"text": text})["tokens"]["tokens"]
    ids = [token.get("id", 0) for token in tokens]
    assert client.call_json(LLM, "Detokenize", {"token_ids": ids})["text"] == text


def test_a_conversation_is_an_input(client):
    generation = client.llm.generate(messages=[{"role": "user", "content": "Who are you?"}], max_tokens=3, seed=1)
    assert len(generation.tokens) == 3


def test_a_session_carries_generations_over_grpc_and_names_it_elsewhere(client):
    with client.llm.session() as session:
        streams = [session.stream("Alice was", max_tokens=5, seed=seed) for seed in range(3)]
        if client.protocol == "grpc":
            for seed, stream in enumerate(streams):
                assert stream.result().text == client.llm.generate("Alice was", max_tokens=5, seed=seed).text
        else:
            with pytest.raises(quill.Unimplemented, match="call it over gRPC at"):
                streams[0].result()
