"""What programs that build on Quill need in their tests, too: peers that are real processes, networks that are bad."""

from quill.testing.chaos import ChaosProxy
from quill.testing.faults import Counts, Faults, Way

__all__ = ["ChaosProxy", "Counts", "Faults", "Way"]
