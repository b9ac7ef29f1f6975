"""Plain fields to bytes and back: JSON, compression, metadata, status details. No sockets, no clock."""
