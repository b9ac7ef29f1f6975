"""An HTTP/1.1 server that says whatever a test wants said, on bare sockets."""

import contextlib
import socket
import threading


class HttpPeer:
    """Answers each path with what stands in ``replies``: the status line, headers, and the body as it is."""

    def __init__(self):
        self.replies = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                threading.Thread(target=self._serve, args=self._listener.accept()[:1], daemon=True).start()

    def _serve(self, peer):
        with contextlib.suppress(OSError), peer, peer.makefile("rb") as lines:
            while line := lines.readline():
                path = line.split()[1].decode()
                length = 0
                while (header := lines.readline().strip().lower()) != b"":
                    name, _, value = header.partition(b":")
                    length = int(value) if name == b"content-length" else length
                lines.read(length)
                status, headers, body = self.replies[path]
                head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
                peer.sendall("\r\n".join([*head, "", ""]).encode() + body)
