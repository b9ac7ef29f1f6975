"""``python -m quill`` is ``quill``."""

from quill.cli.main import main

main()
