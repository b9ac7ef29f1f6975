"""A `quill` process on a pseudo-terminal: what a person types and sees."""

import os
import pty
import selectors
import subprocess
import sys
import time

CTRL_C, CTRL_D = "\x03", "\x04"

# Ctrl-C becomes a signal only on a controlling terminal, which the process must take for itself.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, '-m', 'quill', *sys.argv[1:]])"
)


class Terminal:
    """`quill ARGUMENTS`; killed at the end if it still runs."""

    def __init__(self, *arguments):
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-c", _TAKE_TERMINAL, *arguments]
        env = os.environ | {"TERM": "xterm"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=env
        )
        os.close(theirs)
        self.screen = ""
        """All that was shown."""

    def type(self, text):
        os.write(self._ours, text.encode())

    def sees(self, text, timeout_s=30):
        """Wait until a text is shown that was not waited for before; what came with it."""
        deadline = time.monotonic() + timeout_s
        shown = ""
        while text not in shown:
            more = self._read(deadline)
            if not more:
                raise AssertionError(f"{text!r} was not shown; shown was {shown!r}")
            shown += more
        return shown

    def ends(self, timeout_s=30):
        """Read to the end; the exit status."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        return self.process.wait(timeout_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        os.close(self._ours)

    def _read(self, deadline):
        with selectors.DefaultSelector() as selector:
            selector.register(self._ours, selectors.EVENT_READ)
            if not selector.select(max(0, deadline - time.monotonic())):
                return ""
        try:
            data = os.read(self._ours, 65536).decode(errors="replace")
        except OSError:  # Linux tells so of a terminal that nobody holds any more
            return ""
        self.screen += data
        return data
