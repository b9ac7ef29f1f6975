r"""A conversation as text, for engines that take text only.

Each message is a line that begins with its role, and the answer is asked for at the end::

    system: Answer in one word.
    user Ann: Is this a line?
     And this one?
    assistant: Yes.
    user: Thanks!
    assistant:

The line is ``role: text``, or ``role name: text`` where the message has a name. After every line break in a text
(those of ``str.splitlines``: \n, \r\n, \r, U+2028 and the others) stands one space more than the text has. Roles are
system, user and assistant. A text in parts is its parts joined, with nothing between them. There is a cue for a new
answer also after an assistant's message.

What holds: a role marker stands at the beginning of a line, and no line of a text does, so that the text of one
message never reads as another message. Two different conversations never give the same text. What does not hold: a
model is no parser. It may take words of a user for orders, or an indented ``assistant:`` for a turn, and it may write
``user:`` itself: ``stop=["\nuser"]`` ends it there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from quill.errors import InvalidArgument
from quill.llm.backend import ModelInfo
from quill.llm.shown import shown
from quill.proto import ChatMessage, ContentPart

ROLES = ("system", "user", "assistant")
"""The roles that the template has."""

MAX_MESSAGES = 2048

_NAME = re.compile(r"[\w-]{1,64}")
_CUE = "assistant:"


def render(messages: Sequence[ChatMessage]) -> str:
    """The text of a conversation that ``check_messages`` found good."""
    lines = []
    for message in messages:
        text = message.content or "".join(part.text for part in message.parts)
        speaker = f"{message.role} {message.name}" if message.name else message.role
        lines.append(f"{speaker}: {_indented(text)}\n")
    return "".join(lines) + _CUE


def _indented(text: str) -> str:
    """The text with a space after every line break. The mark shows the empty line after a break at the end."""
    mark = "."
    return " ".join((text + mark).splitlines(keepends=True)).removesuffix(mark)


def check_messages(messages: Sequence[ChatMessage], model: ModelInfo) -> None:
    """Check a conversation, for the template or for an engine that renders messages itself.

    Raises:
        InvalidArgument: A message makes no sense, or the model or the template has no form for it. It is named by
            its place.
    """
    if len(messages) > MAX_MESSAGES:
        raise InvalidArgument(f"messages has {len(messages)} messages, at most {MAX_MESSAGES} go")
    engine_renders = "messages" in model.options
    for place, message in enumerate(messages):
        name = f"messages[{place}]"
        if not (engine_renders and "tools" in model.options):
            _check_no_tools(name, message, model)
        if message.content and message.parts:
            raise InvalidArgument(f"{name} has content and parts: give one of them")
        if not engine_renders:
            _check_speaker(name, message)
            for number, part in enumerate(message.parts):
                _check_text(f"{name}.parts[{number}]", part, model)


def _check_no_tools(name: str, message: ChatMessage, model: ModelInfo) -> None:
    has_tools = {
        "tool_calls": bool(message.tool_calls),
        "tool_call_id": bool(message.tool_call_id),
        "role": message.role == "tool",
    }
    for field, found in has_tools.items():
        if found:
            value = shown(getattr(message, field))
            raise InvalidArgument(f"{name}.{field}={value} is not supported: model {model.name} has no tools")


def _check_speaker(name: str, message: ChatMessage) -> None:
    if message.role not in ROLES:
        raise InvalidArgument(f"{name}.role={shown(message.role)} is no role here; the roles are: {', '.join(ROLES)}")
    if message.name and not _NAME.fullmatch(message.name):
        raise InvalidArgument(f"{name}.name={shown(message.name)} must be 1 to 64 letters, digits, _ and -")


def _check_text(name: str, part: ContentPart, model: ModelInfo) -> None:
    kind = part.WhichOneof("part")
    if kind is None:
        raise InvalidArgument(f"{name} is empty: give text")
    if kind != "text" or (part.mime_type and not part.mime_type.startswith("text/")):
        media = f" of {shown(part.mime_type)}" if part.mime_type else ""
        raise InvalidArgument(f"{name}.{kind}{media} is not supported by model {model.name}: it takes text")
