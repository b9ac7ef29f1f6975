"""Processes that say when they are ready, in their first line of output, and that SIGTERM ends in order."""

from __future__ import annotations

import queue
import subprocess
import threading

from quill.errors import Unavailable

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


def start(command: list[str]) -> tuple[subprocess.Popen[str], str]:
    """Start a process and wait for its first line; ``stop`` ends it. Its standard error is the caller's.

    Args:
        command: The program and its arguments.

    Raises:
        Unavailable: It ended before it said anything, or took too long.
    """
    # A session of its own: Ctrl-C reaches the caller alone, who stops it in order.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603
    try:
        return process, _first_line(process)
    except BaseException:
        stop(process)
        raise


def stop(process: subprocess.Popen[str]) -> int:
    """End a process with SIGTERM, or by force where that takes too long. Its exit status."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return process.returncode


def _first_line(process: subprocess.Popen[str]) -> str:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    stdout = process.stdout
    assert stdout is not None  # noqa: S101  (Popen was given a pipe)
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=START_TIMEOUT_S)
    except queue.Empty:
        raise Unavailable(f"the server did not start within {START_TIMEOUT_S:.0f} s") from None
    if not line:
        raise Unavailable("the server ended before it was ready; its own message stands above")
    return line
