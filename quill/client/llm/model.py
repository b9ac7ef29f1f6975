"""A language model that a server offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quill import proto


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a server says of one of its models; inference.v1.Model."""

    name: str
    aliases: tuple[str, ...] = ()
    """Other names for it."""
    backend: str = ""
    """The kind of engine that runs it."""
    ready: bool = False
    """Whether it can answer now."""
    context_length: int = 0
    """Tokens of prompt and output together; 0 where unknown."""
    vocab_size: int = 0
    """How many tokens it knows; 0 where unknown."""
    eos_token_ids: tuple[int, ...] = ()
    """The tokens that end a sequence."""
    capabilities: tuple[str, ...] = ()
    """The names of the GenerateRequest options that it honours, and of the methods beside Generate that it has:
    ``"embed"``, and ``"tokenize"`` for Tokenize and Detokenize."""
    adapters: tuple[str, ...] = ()
    """The adapters that it can use."""
    default_sampling: Mapping[str, Any] = field(default_factory=dict)
    """What it uses where a request says nothing, by option name."""
    weights_origin: str = ""
    """Where its weights come from and what they are."""

    @classmethod
    def from_proto(cls, message: proto.Model) -> Model:
        """The value of an inference.v1.Model message."""
        from google.protobuf.json_format import MessageToDict

        return cls(
            name=message.name,
            aliases=tuple(message.aliases),
            backend=message.backend,
            ready=message.ready,
            context_length=message.context_length,
            vocab_size=message.vocab_size,
            eos_token_ids=tuple(message.eos_token_ids),
            capabilities=tuple(message.capabilities),
            adapters=tuple(message.adapters),
            default_sampling=MessageToDict(message.default_sampling),
            weights_origin=message.weights_origin,
        )
