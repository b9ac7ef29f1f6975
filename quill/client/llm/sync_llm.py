"""LLMService with the blocking client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, SupportsIndex, TypeVar, Unpack

from quill.client.llm.calls import SERVICE, SyncRun
from quill.client.llm.embeddings import embedding
from quill.client.llm.questions import Listing, cancelling, describing, generating
from quill.client.llm.request import GenerateOptions, generate_request
from quill.client.llm.sync_session import Session
from quill.client.llm.sync_stream import GenerationStream
from quill.client.llm.tokenization import detokenizing, tokenizing

if TYPE_CHECKING:
    from quill import proto
    from quill.client.calls import Question, SyncCalls
    from quill.client.headers import Headers
    from quill.client.llm.conversation import ChatMessage
    from quill.client.llm.embeddings import Embeddings, EmbedInputs, Pooling
    from quill.client.llm.model import Model
    from quill.client.llm.tokenization import Tokenization
    from quill.client.transport import ResponseMetadata
    from quill.dtype import DType
    from quill.generation import Generation

T = TypeVar("T")


class LLM:
    """inference.v1.LLMService.

    Every method takes ``timeout_ms``, ``headers`` and ``response``, which are those of ``QuillClient.call``, and raises
    InvalidUsage or InvalidType where an argument cannot be used, before anything is sent, and an RpcError with the
    status that its call ended with: Unimplemented where the server or the model does not offer it. ``model`` is the
    name or an alias of a model, and may be absent where the server has one.

    Args:
        client: Whose connection and headers are used.
    """

    def __init__(self, client: SyncCalls) -> None:
        self._client = client

    def generate(
        self,
        prompt: str | None = None,
        *,
        resume_ttl_ms: int = 0,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Generate and return at the end.

        Args:
            prompt: The input as text; or ``messages=`` or ``prompt_token_ids=`` in its place.
            resume_ttl_ms: For how many milliseconds the generation outlives a lost connection. Within them the client
                connects again, and what was generated meanwhile is not lost; StreamInterrupted where it has to give
                up after the generation began. 0 ends the generation with its connection.
            timeout_ms: How long it may take, all connections together.
            headers: Sent with this call.
            response: Filled with the reply's headers and trailers.
            options: Any field of inference.v1.GenerateRequest by name; see GenerateOptions.
        """
        if resume_ttl_ms:
            with self.stream(
                prompt,
                resume_ttl_ms=resume_ttl_ms,
                timeout_ms=self._client.timeout_ms if timeout_ms is None else timeout_ms,
                headers=headers,
                response=response,
                **options,
            ) as stream:
                return stream.result()
        return self._ask(generating(prompt, options), timeout_ms, headers, response)

    def stream(
        self,
        prompt: str | None = None,
        *,
        resume_ttl_ms: int = 0,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationStream:
        """Generate and iterate over the pieces as they come.

        Arguments are those of ``generate``, and timeouts those of ``QuillClient.stream``. With ``resume_ttl_ms`` the
        iterator goes on after a lost connection, each piece once and in order; see ``GenerationStream``.
        """
        request = generate_request(prompt, options, resume_ttl_ms=resume_ttl_ms)
        return GenerationStream(SyncRun(self._client, headers, response), request, timeout_ms)

    def session(
        self,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> Session:
        """Open a session: one call that carries many generations. Nothing is sent before the first of them.

        Args:
            timeout_ms: How long the whole session may last. Where None, the first message must come within the client's
                ``timeout_ms``; while a generation runs, no gap may exceed ``idle_timeout_ms``.
            headers: Sent with the call.
            response: Filled with the reply's headers and trailers.
        """
        return Session(self._client, timeout_ms=timeout_ms, headers=headers, response=response)

    def embed(
        self,
        inputs: EmbedInputs,
        *,
        model: str | None = None,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        dtype: DType | None = None,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> Embeddings:
        """Compute the embedding of each input.

        Args:
            inputs: A text, the token ids of one input, or a sequence of such inputs; none empty.
            model: The model; see the class.
            pooling: How token vectors become one vector: ``"mean"``, ``"cls"``, ``"last"``, ``"max"``, or ``"none"``
                for one row per token; the model's habit where None.
            normalize: Whether to scale each vector to length 1; the model's habit where None.
            dimensions: Keep only this many leading dimensions, where the model was trained for it.
            dtype: The type of the elements: float32, float16, bfloat16 or float64; float32 where None.
            timeout_ms: How long it may take.
            headers: Sent with this call.
            response: Filled with the reply's headers and trailers.

        Returns:
            The vectors in the order of the inputs, their number, sizes and type checked against the request.
        """
        question = embedding(
            inputs, model=model, pooling=pooling, normalize=normalize, dimensions=dimensions, dtype=dtype
        )
        return self._ask(question, timeout_ms, headers, response)

    def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage | proto.ChatMessage] | None = None,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> Tokenization:
        """Split a text into the tokens of a model.

        Args:
            text: The text; or
            messages: a conversation, rendered as ``generate`` does it.
            model: The model; see the class.
            add_special_tokens: Whether the begin-of-sequence tokens come first; the model's habit where None.
            timeout_ms: How long it may take.
            headers: Sent with this call.
            response: Filled with the reply's headers and trailers.
        """
        question = tokenizing(text, messages=messages, model=model, add_special_tokens=add_special_tokens)
        return self._ask(question, timeout_ms, headers, response)

    def detokenize(
        self,
        token_ids: Iterable[SupportsIndex],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> str:
        """Join the tokens of a model to text; bytes that are no UTF-8 appear as U+FFFD.

        Args:
            token_ids: The ids, in order.
            model: The model; see the class.
            skip_special_tokens: Whether control tokens stay out of the text; they do where None.
            timeout_ms: How long it may take.
            headers: Sent with this call.
            response: Filled with the reply's headers and trailers.
        """
        question = detokenizing(token_ids, model=model, skip_special_tokens=skip_special_tokens)
        return self._ask(question, timeout_ms, headers, response)

    def models(
        self,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> list[Model]:
        """The models on offer, by name. ``timeout_ms`` is for each page of them."""
        listing = Listing()
        while (question := listing.question()) is not None:
            self._ask(question, timeout_ms, headers, response)
        return listing.models

    def model(
        self,
        name: str,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> Model:
        """One model, by its name or an alias. NotFound names those that there are."""
        return self._ask(describing(name), timeout_ms, headers, response)

    def cancel(
        self,
        request_id: str,
        reason: str = "",
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> bool:
        """Stop a generation of the same caller.

        Args:
            request_id: The run's id.
            reason: Why, for the server's log.
            timeout_ms: How long it may take.
            headers: Sent with this call.
            response: Filled with the reply's headers and trailers.

        Returns:
            Whether a live run of this caller had that id. The engine has been told then.
        """
        return self._ask(cancelling(request_id, reason), timeout_ms, headers, response)

    def _ask(
        self,
        question: Question[T],
        timeout_ms: int | None,
        headers: Headers | None,
        response: ResponseMetadata | None,
    ) -> T:
        reply = self._client.call(
            SERVICE,
            question.method,
            question.request,
            codec=question.codec,
            timeout_ms=timeout_ms,
            headers=headers,
            response=response,
        )
        return question.read(reply)
