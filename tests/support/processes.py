"""Real `quill` processes for tests: started on free ports, ended by id."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

SERVE = [sys.executable, "-m", "quill", "serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"]


@contextmanager
def serving(*arguments):
    """A ready server: the process, and what its first line says. Killed at the end if it still runs."""
    process = subprocess.Popen([*SERVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process, json.loads(first_line(process))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)


def first_line(process, timeout_s=60):
    """The first line of a process's standard output, within the time."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + timeout_s
        if not selector.select(deadline - time.monotonic()):
            raise TimeoutError(f"no line within {timeout_s} s")
        return process.stdout.readline()


def quill(*arguments, stdin=None, timeout_s=60):
    """Run `quill ARGUMENTS` to its end; its output as a person or a pipe sees it."""
    return subprocess.run(
        [sys.executable, "-m", "quill", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"NO_COLOR": "1"},
        check=False,
    )


def shell(command, timeout_s=60):
    """Run a bash command line to its end: for what only a shell does to a command's streams."""
    return subprocess.run(
        ["/bin/bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"NO_COLOR": "1"},
        check=False,
    )
