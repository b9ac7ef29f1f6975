"""What was said in a chat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quill.client.llm.conversation import ChatMessage


@dataclass(slots=True)
class Conversation:
    """The turns of a chat, and the system message that stands before them; empty for none."""

    system: str = ""
    _turns: list[ChatMessage] = field(default_factory=list)

    def messages(self, question: str) -> list[ChatMessage]:
        """All messages, with a new question at the end."""
        before: list[ChatMessage] = [{"role": "system", "content": self.system}] if self.system else []
        return [*before, *self._turns, {"role": "user", "content": question}]

    def add(self, question: str, answer: str) -> None:
        """Keep a question and its answer."""
        self._turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        """Forget the turns. The system message stays."""
        self._turns.clear()
