"""A sidecar for development as a process of its own, for a test or a demo."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Self

from quill.errors import InvalidUsage, Unavailable
from quill.testing import started

_REQUEST_TIMEOUT_S = 30.0


class SidecarProcess:
    """Runs ``quill sidecar`` on a free port of the loopback address, as a context.

    For example::

        with SidecarProcess("B") as sidecar:
            sidecar.set_faults({"on": "pop", "kind": "status", "status": 500, "next": 2})
            ...  # call sidecar.url

    Its methods block for as long as one request on the loopback address takes. stderr is the caller's.

    Args:
        dialect: A, B or C.
        arguments: What else the command takes, as ``"--seed", "7"``.
    """

    def __init__(self, dialect: str = "A", *arguments: str) -> None:
        self.dialect = dialect
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        """``http://127.0.0.1:PORT``, while it runs."""
        self.websocket_url = ""
        """``ws://127.0.0.1:PORT/ws/generate``; B answers 404 there."""

    def __enter__(self) -> Self:
        """Start it, and wait until it is ready.

        Raises:
            Unavailable: It ended before, or took too long.
        """
        self.start(port=0)
        return self

    def __exit__(self, *_: object) -> None:
        """End it in order, or by force where that takes too long."""
        self.stop()

    @property
    def pid(self) -> int:
        """The id of the process.

        Raises:
            InvalidUsage: It does not run.
        """
        if self._process is None:
            raise InvalidUsage("the sidecar does not run: use it as a context")
        return self._process.pid

    def start(self, *, port: int | None = None) -> None:
        """Start it again after ``kill`` or an exit, on the same port unless told otherwise.

        Raises:
            Unavailable: It ended before it was ready, or took too long.
        """
        self.stop()
        if port is None:
            port = int(self.url.rpartition(":")[2] or 0)
        command = [sys.executable, "-m", "quill", "sidecar", "--port", str(port), "--dialect", self.dialect]
        self._process, line = started.start([*command, "--json", "--faults", *self._arguments])
        ready = json.loads(line)
        self.url, self.websocket_url = ready["url"], ready["websocket_url"]

    def stop(self) -> int | None:
        """End it with SIGTERM. Its exit status; None where it did not run."""
        process, self._process = self._process, None
        return None if process is None else started.stop(process)

    def kill(self) -> None:
        """End it at once, as a crash does. ``start`` starts another one on the same port."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Restart it in place: queues and results are lost, it is another peer, and its uptime begins at 0."""
        self._post({"restart": True})

    def set_faults(self, *faults: Mapping[str, object]) -> None:
        """Put these faults in the place of all; none switches all off. Their counts begin anew.

        Raises:
            InvalidUsage: One of them is none; nothing was changed.
        """
        self._post({"faults": [dict(fault) for fault in faults]})

    def behave(self, **switches: object) -> None:
        """Set these switches, and all others to their defaults.

        Raises:
            InvalidUsage: There is no such switch or value; nothing was changed.
        """
        self._post({"behaviour": switches})

    def report(self) -> dict[str, Any]:
        """What it saw: requests by endpoint, request_ids, results that wait, faults and how often they fired."""
        return self._call("GET", None)

    def _post(self, values: Mapping[str, object]) -> None:
        self._call("POST", values)

    def _call(self, method: str, values: Mapping[str, object] | None) -> dict[str, Any]:
        body = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(  # noqa: S310 - the address of our own process
            self.url + "/faults", body, {"content-type": "application/json"}, method=method
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_REQUEST_TIMEOUT_S) as reply:
                answer: dict[str, Any] = json.load(reply)
                return answer
        except urllib.error.HTTPError as error:
            with error:
                raise InvalidUsage(error.read().decode()) from None
        except OSError as error:
            raise Unavailable(f"the sidecar at {self.url} does not answer: {error}") from None
