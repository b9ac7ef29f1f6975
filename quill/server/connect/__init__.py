"""The Connect protocol on the HTTP port. connectrpc is known to this package alone."""
