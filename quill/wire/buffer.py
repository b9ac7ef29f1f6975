"""What holds bytes, as far as Quill takes it."""

Buffer = bytes | bytearray | memoryview
