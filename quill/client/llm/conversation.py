"""Messages, tools and output formats as a caller writes them, and as the contract has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Required, TypedDict

from quill.client.llm.fields import Converters, filled_from, json_text, several
from quill.generation import ToolCall
from quill.tensor import Tensor

if TYPE_CHECKING:
    from quill import proto


class ContentPart(TypedDict, total=False):
    """A piece of a message: one of text, data, uri and tensor; inference.v1.ContentPart."""

    mime_type: str
    """The media type (RFC 6838) of data or uri."""
    text: str
    """Text."""
    data: bytes
    """The bytes of an image, a sound, a document."""
    uri: str
    """Where the engine finds them."""
    tensor: Tensor | proto.Tensor
    """Media that is already a tensor."""


class ChatMessage(TypedDict, total=False):
    """One message of a conversation: ``{"role": "user", "content": "Hello"}``; inference.v1.ChatMessage."""

    role: Required[str]
    """``"system"``, ``"user"``, ``"assistant"``, ``"tool"``, or what the model's template knows."""
    content: str
    """The text, where there is only text."""
    parts: Sequence[ContentPart | proto.ContentPart]
    """Text and other media in order, in place of content."""
    name: str
    """The name of the participant."""
    tool_calls: Sequence[ToolCall | proto.ToolCall]
    """What the assistant asked to be called, as ``Choice.tool_calls`` told it."""
    tool_call_id: str
    """Which call this message answers, with the role ``"tool"``."""


class Tool(TypedDict, total=False):
    """A function that the model may call; inference.v1.Tool."""

    name: Required[str]
    """Its name."""
    description: str
    """What it does."""
    parameters_json: str | Mapping[str, Any]
    """The JSON Schema of its arguments."""


class ResponseFormat(TypedDict, total=False):
    """What form the output must have: one of these; inference.v1.ResponseFormat."""

    json_schema: str | Mapping[str, Any]
    """A JSON document that this JSON Schema describes."""
    json_object: bool
    """Any JSON object."""
    regex: str
    """Text that this regular expression matches as a whole."""
    grammar: str
    """Text of this grammar, in the engine's notation."""
    choice: Sequence[str] | proto.Choices
    """Exactly one of these texts."""


def chat_messages(name: str, value: Any) -> list[proto.ChatMessage]:
    """The messages of a conversation.

    Raises:
        InvalidUsage: A field is unknown or out of range; named by its place.
        InvalidType: A value is of a type that its field does not have.
    """
    from quill.proto import ChatMessage as Message

    items = enumerate(several(name, value))
    return [filled_from(Message, f"{name}[{place}]", item, _CHAT_MESSAGE) for place, item in items]


def tools(name: str, value: Any) -> list[proto.Tool]:
    """The tools of a request; raises as ``chat_messages``."""
    from quill.proto import Tool as Message

    items = enumerate(several(name, value))
    return [filled_from(Message, f"{name}[{place}]", item, _TOOL) for place, item in items]


def response_format(name: str, value: Any) -> proto.ResponseFormat:
    """The format of a request; raises as ``chat_messages``."""
    from quill.proto import ResponseFormat as Message

    return filled_from(Message, name, value, _RESPONSE_FORMAT)


def _parts(name: str, value: Any) -> list[proto.ContentPart]:
    from quill.proto import ContentPart as Message

    items = enumerate(several(name, value))
    return [filled_from(Message, f"{name}[{place}]", item, _PART) for place, item in items]


def _tool_calls(name: str, value: Any) -> list[proto.ToolCall]:
    from quill.proto import ToolCall as Message

    calls = []
    for place, item in enumerate(several(name, value)):
        if isinstance(item, ToolCall):
            calls.append(Message(index=item.index, id=item.id, name=item.name, arguments=item.arguments))
        else:
            calls.append(filled_from(Message, f"{name}[{place}]", item, {}))
    return calls


def _tensor(_name: str, value: Any) -> Any:
    return value.to_proto() if isinstance(value, Tensor) else value


def _choice(_name: str, value: Any) -> Any:
    """Texts in a list are the values of a Choices message."""
    return {"values": value} if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value


_PART: Converters = {"tensor": _tensor}
_CHAT_MESSAGE: Converters = {"parts": _parts, "tool_calls": _tool_calls}
_TOOL: Converters = {"parameters_json": json_text}
_RESPONSE_FORMAT: Converters = {"json_schema": json_text, "choice": _choice}
