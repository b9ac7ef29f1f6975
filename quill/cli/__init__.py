"""The command line: ``quill serve``, ``generate``, ``call``, ``models``, ``demo``."""
