import pytest

# Cases assert in modules of their own.
for module in ("messages", "endings", "metadata", "times", "leaving", "duplex"):
    pytest.register_assert_rewrite(f"protocol_table.{module}")
