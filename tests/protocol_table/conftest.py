import pytest

for module in (
    "callers",
    "cells",
    "table",
    "impossible",
    "messages",
    "endings",
    "metadata",
    "times",
    "leaving",
    "duplex",
):
    pytest.register_assert_rewrite(f"protocol_table.{module}")
