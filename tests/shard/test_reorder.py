import pytest
from hypothesis import given
from hypothesis import strategies as st

from quill.shard.reorder import Reorder, TooManyWait


@given(st.integers(1, 30).flatmap(lambda n: st.permutations(range(n))), st.data())
def test_any_order_comes_out_sorted_once_each(numbers, data):
    order, out = Reorder(limit=30), []
    for number in numbers:
        out += order.put(number, f"t{number}")
        again = data.draw(st.sampled_from(numbers[: numbers.index(number) + 1]))
        assert order.put(again, "twice") is None
    assert out == [f"t{number}" for number in range(len(numbers))]
    assert not order.gap


def test_one_more_than_the_bound_is_refused():
    order = Reorder(limit=2)
    assert order.put(2, "c") == []
    assert order.put(1, "b") == []
    with pytest.raises(TooManyWait):
        order.put(3, "d")
    assert order.put(0, "a") == ["a", "b", "c"]  # the one that is missing is always taken


def test_numbers_may_begin_with_one():
    order = Reorder(limit=5)
    assert order.put(2, "b") == []
    assert order.begin_with_one() == []
    assert order.put(1, "a") == []
    assert order.begin_with_one() == ["a", "b"]
    assert order.put(0, "late") is None
