"""``quill chat``: a conversation with a model, typed or piped."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from quill.cli import lines
from quill.cli.answer import Answerer, JsonAnswerer
from quill.cli.connection import DEFAULT_URL, Connection, Url, connecting
from quill.cli.conversation import Conversation
from quill.cli.options import Json, MaxTokens, ModelName, Seed, Stop, Temperature, TopK, TopP
from quill.cli.terminal import complain, is_interactive, note, write
from quill.client.async_client import AsyncQuillClient
from quill.errors import InvalidUsage, PermissionDenied, Unavailable, Unimplemented

if TYPE_CHECKING:
    from quill.client.llm.model import Model
    from quill.client.llm.request import GenerateOptions

HELP = """\
/help         this list
/reset        forget what was said; the system message stays
/system TEXT  set the system message; without TEXT, take it away
/exit         end the chat, as Ctrl-D does
//TEXT        say a line that begins with a slash
Ctrl-C        stop an answer"""


@connecting
def chat(
    url: Url = DEFAULT_URL,
    model: ModelName = "",
    system: Annotated[str, typer.Option(help="A message to the model that stands before the conversation.")] = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    json: Json = False,
    *,
    connection: Connection,
) -> None:
    """Talk with a model; each line is a message, typed or from a pipe. With --json, one object per answer."""
    options: GenerateOptions = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop,
    }
    client = AsyncQuillClient(url, **connection.options())
    # A Runner turns Ctrl-C into a cancellation of what it runs, so that no call is torn apart in the middle.
    with asyncio.Runner() as runner:
        try:
            partner = runner.run(_partner(client, model))
            options["model"] = partner.name if partner else model
            interactive = is_interactive() and not json
            if partner is not None:
                (note if json else write)(f"{partner.name}: {partner.weights_origin or 'of unknown origin'}")
            if interactive:
                write("Ctrl-C stops an answer, /help lists the commands, Ctrl-D ends.")
            answerer = (JsonAnswerer if json else Answerer)(client, options)
            talk = Chat(runner, answerer, Conversation(system), keeps_on=interactive)
            failures = talk.run(lines.typed() if interactive else lines.piped())
        finally:
            runner.run(client.close())
    if failures and not interactive:
        raise typer.Exit(1)


class Chat:
    """The loop of a chat: a line, and the answer to it.

    Args:
        runner: Runs the calls.
        answerer: Asks and shows.
        conversation: What is told before the first line.
        keeps_on: Whether Ctrl-C between answers ends nothing, as where a person types.
    """

    def __init__(
        self, runner: asyncio.Runner, answerer: Answerer, conversation: Conversation, *, keeps_on: bool
    ) -> None:
        self._runner = runner
        self._answerer = answerer
        self._conversation = conversation
        self._keeps_on = keeps_on

    def run(self, said: Iterable[str]) -> int:
        """Answer each line until the last, or ``/exit``. Returns how many lines had no whole answer."""
        failures = 0
        for line in said:
            text = line.strip()
            if text == "/exit":
                break
            try:
                failures += not self._hear(text)
            except KeyboardInterrupt:  # in the moment after an answer has ended
                if not self._keeps_on:
                    raise
                write()
        return failures

    def _hear(self, text: str) -> bool:
        """Do what a line asks for. Returns False where it had no whole answer."""
        if text.startswith("/") and not text.startswith("//"):
            self._obey(*text[1:].split(maxsplit=1))
            return True
        return not text or self._say(text.replace("//", "/", 1) if text.startswith("//") else text)

    def _say(self, text: str) -> bool:
        """Ask for the answer to a line. Returns whether it is whole.

        What was shown of it stays in the conversation; where nothing was, the line is as if never said.
        """
        answer = self._runner.run(self._answerer.answer(self._conversation.messages(text)))
        if answer.text or answer.error is None:
            self._conversation.add(text, answer.text)
        return answer.error is None

    def _obey(self, name: str = "", argument: str = "") -> None:
        """Carry out a command."""
        match name:
            case "help":
                note(HELP)
            case "reset":
                self._conversation.reset()
                note("What was said is forgotten.")
            case "system":
                self._conversation.system = argument
                note("The system message is set." if argument else "There is no system message.")
            case _:
                complain(f"there is no command /{name}; /help lists those that there are")


async def _partner(client: AsyncQuillClient, name: str) -> Model | None:
    """The model to talk with; None where the server does not tell of its models, or not to this caller.

    Raises:
        NotFound: There is none of that name.
        InvalidUsage: None is named, and there are several.
        Unavailable: There is none at all, or the server cannot be reached.
    """
    try:
        models = [await client.llm.model(name)] if name else await client.llm.models()
    except (Unimplemented, PermissionDenied):
        return None
    if not models:
        raise Unavailable("the server has no model")
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        raise InvalidUsage(f"the server has {len(models)} models: {names}; choose one with --model")
    return models[0]
