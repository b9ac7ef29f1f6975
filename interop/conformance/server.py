"""The server under test: reads what is wanted of it on stdin, tells where it serves on stdout, runs until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path

from frames import read_messages, write_message
from gen.config_pb2 import HTTP_VERSION_2, PROTOCOL_GRPC
from gen.server_compat_pb2 import ServerCompatRequest, ServerCompatResponse
from gen.service_pb2_grpc import add_ConformanceServiceServicer_to_server
from servicer import Conformance

from quill.limits import Limits
from quill.server import Server, Tls

ADDRESS = "127.0.0.1:0"
GRACE_S = 1.0


def make_server(wanted: ServerCompatRequest, folder: Path) -> Server:
    """A server with one port, of the kind that is wanted; the files of its certificates lie in the folder."""
    is_grpc = wanted.protocol == PROTOCOL_GRPC
    tls = None
    if wanted.use_tls:
        cert, key, client_ca = folder / "cert.pem", folder / "key.pem", folder / "clients.pem"
        cert.write_bytes(wanted.server_creds.cert)
        key.write_bytes(wanted.server_creds.key)
        client_ca.write_bytes(wanted.client_tls_cert)
        tls = Tls(cert=cert, key=key, client_ca=client_ca if wanted.client_tls_cert else None)
    return Server(
        grpc=ADDRESS if is_grpc else None,
        http=None if is_grpc else ADDRESS,
        http2=not is_grpc and wanted.http_version == HTTP_VERSION_2,
        limits=Limits(max_message_bytes=wanted.message_receive_limit) if wanted.message_receive_limit else None,
        compression=True,
        tls=tls,
    )


async def main() -> None:
    """Serve."""
    wanted = next(read_messages(ServerCompatRequest))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    with tempfile.TemporaryDirectory() as folder:
        server = make_server(wanted, Path(folder))
        add_ConformanceServiceServicer_to_server(Conformance(), server)
        await server.start()
        try:
            address = server.grpc_address or (server.http_url or "").rpartition("//")[2]
            host, _, port = address.rpartition(":")
            pem_cert = wanted.server_creds.cert if wanted.use_tls else b""
            write_message(ServerCompatResponse(host=host, port=int(port), pem_cert=pem_cert))
            await stopped.wait()
        finally:
            await server.stop(GRACE_S)


if __name__ == "__main__":
    asyncio.run(main())
