"""The account of what is kept never exceeds its bounds, whatever comes and goes."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import ResourceExhausted
from quill.limits import Limits
from quill.llm.store import JournalStore
from quill.principal import Principal

STEPS = st.tuples(
    st.sampled_from(["reserve", "release", "keep", "keep reply", "forget"]), st.integers(0, 2), st.integers(1, 60)
)


class Kept:
    """Stands for a run: the store looks at whose it is, and whether it can be resumed."""

    def __init__(self, principal, *, is_resumable):
        self.key = SimpleNamespace(principal=principal)
        self.is_resumable = is_resumable


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=60))
def test_bounds_hold_and_the_oldest_goes_first(steps):
    dropped = []
    limits = Limits(max_kept_bytes=100, max_kept_bytes_per_principal=70, max_finished_bytes=50)
    store = JournalStore(limits, dropped.append)
    reserved, kept = [], {}
    for step, who, size in steps:
        principal = Principal(f"p{who}")
        if step == "reserve":
            mine = sum(held for owner, held in reserved if owner == principal)
            fits = mine + size <= 70 and sum(held for _, held in reserved) + size <= 100
            if fits:
                store.reserve(principal, size)
                reserved.append((principal, size))
            else:
                with pytest.raises(ResourceExhausted, match=str(size)):
                    store.reserve(principal, size)
                assert not dropped, "nothing goes for what is refused"
        elif step == "release" and reserved:
            store.release(*reserved.pop(0))
        elif step.startswith("keep"):
            kept[run := Kept(principal, is_resumable=step == "keep")] = size
            store.keep(run, size)
        elif step == "forget" and kept:
            run = next(iter(kept))
            store.forget(run)
            store.forget(run)
            del kept[run]
        for gone in dropped:
            own = [run for run in kept if run.key.principal == gone.key.principal]
            replies = [run for run in kept if not run.is_resumable]
            oldest = {next(iter(kept)), own[0], own[-1], *replies[:1]}
            assert gone in oldest, "the oldest of all, of its principal or of the replies, or one too large itself"
            del kept[gone]
        dropped.clear()
        used = Counter()
        for principal, held in [*reserved, *((run.key.principal, size) for run, size in kept.items())]:
            used[principal] += held
        assert store.used_bytes == used.total() <= 100
        assert all(held <= 70 for held in used.values())
        assert sum(size for run, size in kept.items() if not run.is_resumable) <= 50
        assert set(store._shares) == set(used), "nothing is held for principals of whom nothing is kept"
