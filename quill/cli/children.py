"""Processes of our own: `quill` commands on free ports, ready before they are used, ended in any case."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from quill.errors import Unavailable

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0


class Child:
    """A ``quill`` command that says with its first line that it is ready. A context manager: its end ends the command.

    Args:
        arguments: As on the command line; ``--json`` is added.
    """

    def __init__(self, *arguments: str) -> None:
        self._name = f"quill {arguments[0]}"
        self._command = [sys.executable, "-m", "quill", *arguments, "--json"]
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C reaches this process alone, which ends the child in order.
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def ready(self) -> dict[str, str]:
        """What the command says of itself once it is ready.

        Raises:
            Unavailable: It ended before, or takes too long.
        """
        try:
            line = self._lines.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            raise Unavailable(f"{self._name} did not start within {START_TIMEOUT_S:.0f} s") from None
        if not line:
            raise Unavailable(f"{self._name} ended before it was ready; its own message stands above")
        told: dict[str, str] = json.loads(line)
        return told

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        stdout = self._process.stdout
        with suppress(ValueError):  # closed meanwhile: nobody waits any more
            self._lines.put("" if stdout is None else stdout.readline())
