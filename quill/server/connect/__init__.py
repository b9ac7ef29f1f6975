"""Connect and gRPC-Web on the HTTP port. connectrpc is known to this package alone."""
