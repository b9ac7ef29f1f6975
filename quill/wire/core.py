"""Channel arguments that servers and clients alike give to C-core, the library inside grpcio."""

from __future__ import annotations

_BOUNDED_SINCE = (1, 84)
_IDENTITY_ONLY = 1


def bounded_decompression(grpcio_version: str) -> dict[str, int]:
    """No compressed messages where C-core would decompress them to their end before it looks at their size.

    Measured with half a MiB of gzip or deflate that becomes 512 MiB, under a limit of 8 MiB: grpcio 1.76, 1.80 and
    1.83 grow by 544 to 550 MiB, as servers and as clients, and 1.84 and 1.85 by 4 to 14 MiB. On an older one a server
    answers compressed requests with UNIMPLEMENTED, and a client accepts no compressed replies; compressed requests
    it sends all the same.

    Args:
        grpcio_version: ``grpc.__version__``.

    Returns:
        Channel arguments (grpc/impl/channel_arg_names.h).
    """
    version = tuple(int(part) for part in grpcio_version.split(".")[:2])
    return {} if version >= _BOUNDED_SINCE else {"grpc.compression_enabled_algorithms_bitset": _IDENTITY_ONLY}
