# Written by tools/generate.py from proto/. Do not edit.
