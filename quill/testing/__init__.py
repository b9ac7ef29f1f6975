"""What programs that build on Quill need in their tests, too: peers that are real processes."""
