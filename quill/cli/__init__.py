"""The command line: ``quill serve``, ``chat``, ``generate``, ``call``, ``models``, ``demo``."""
