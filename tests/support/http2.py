"""HTTP/2 on blocking sockets by the library h2: a client and a server that say whatever a test wants said."""

import contextlib
import socket
import struct
import threading

import h2.config
import h2.connection
import h2.events
import h2.exceptions

TIMEOUT_S = 30


def _connection(*, client):
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding="utf-8"))
    connection.initiate_connection()
    return connection


class Body:
    """What is still to be sent on one stream, as flow control lets it go."""

    def __init__(self, data, trailers=()):
        self._rest = memoryview(data)
        self._trailers = trailers

    def flush(self, connection, stream):
        """Send what may be sent; True when that was all."""
        while self._rest:
            room = min(connection.local_flow_control_window(stream), connection.max_outbound_frame_size)
            if room <= 0:
                return False
            piece, self._rest = self._rest[:room], self._rest[room:]
            connection.send_data(stream, piece)
        if self._trailers:
            connection.send_headers(stream, self._trailers, end_stream=True)
        else:
            connection.end_stream(stream)
        return True


def ask(address, path, headers, body=b"", method="POST"):
    """One request on a connection of its own: headers and trailers together, and the body."""
    host, _, port = address.rpartition(":")
    told, received, rest = {}, bytearray(), Body(body)
    with socket.create_connection((host, int(port)), TIMEOUT_S) as peer:
        connection = _connection(client=True)
        pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "test")]
        connection.send_headers(1, [*pseudo, *headers])
        while True:
            if rest is not None and rest.flush(connection, 1):
                rest = None
            peer.sendall(connection.data_to_send())
            data = peer.recv(65536)
            assert data, "the connection was closed"
            for event in connection.receive_data(data):
                match event:
                    case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                        told.update(event.headers)
                    case h2.events.DataReceived():
                        received += event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    case h2.events.StreamEnded() | h2.events.StreamReset():
                        return told, bytes(received)


def ask_grpc(address, path, body, headers=()):
    """One call with one body, as a gRPC client sends it: the status as a number, the message, the reply's body."""
    sent = [("content-type", "application/grpc"), ("te", "trailers"), *headers]
    told, received = ask(address, path, sent, body)
    return int(told["grpc-status"]), told.get("grpc-message", ""), received


def enveloped(data, flags=0):
    """A message of a stream."""
    return struct.pack(">BI", flags, len(data)) + data


class GrpcPeer:
    """A gRPC server that answers each path with what stands in ``replies``: the encoding, and the body as it is."""

    def __init__(self):
        self.replies = {}
        self.requests = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"

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
        connection = _connection(client=False)
        bodies = {}
        with contextlib.suppress(OSError, h2.exceptions.H2Error), peer:
            while True:
                for stream in [stream for stream, body in bodies.items() if body.flush(connection, stream)]:
                    del bodies[stream]
                peer.sendall(connection.data_to_send())
                data = peer.recv(65536)
                if not data:
                    return
                for event in connection.receive_data(data):
                    match event:
                        case h2.events.RequestReceived():
                            asked = dict(event.headers)
                            self.requests.append(asked)
                            encoding, body = self.replies[asked[":path"]]
                            head = [(":status", "200"), ("content-type", "application/grpc")]
                            connection.send_headers(event.stream_id, [*head, ("grpc-encoding", encoding)])
                            bodies[event.stream_id] = Body(body, [("grpc-status", "0")])
                        case h2.events.DataReceived():
                            connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        case h2.events.StreamReset():
                            bodies.pop(event.stream_id, None)
