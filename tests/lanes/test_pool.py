"""Memory that is given out again once nobody refers to it, and not before."""

import gc

import numpy as np
import pytest

from quill.dtype import DType
from quill.errors import ResourceExhausted
from quill.lanes.pool import ReceivePool
from quill.tensor import Tensor

MIB = 2**20


def address(view):
    return np.frombuffer(view, np.uint8).ctypes.data


def pool(max_mib=100, kept_mib=50):
    return ReceivePool(max_bytes=max_mib * MIB, kept_bytes=kept_mib * MIB)


def test_memory_is_writable_and_as_large_as_asked_for():
    for size in (0, 1, MIB - 1, MIB, MIB + 1):
        view = pool().take(size)
        assert (view.nbytes, view.readonly, view.format) == (size, False, "B")
        assert size < MIB or address(view) % 64 == 0


def test_memory_that_nobody_refers_to_is_used_again():
    from_here = pool()
    view = from_here.take(4 * MIB)
    where = address(view)
    del view
    assert address(from_here.take(3 * MIB)) == where


HOLDERS = [
    lambda view: view[MIB:],
    lambda view: np.frombuffer(view, np.uint8)[5:9],
    lambda view: Tensor.from_bytes(view, [view.nbytes], DType.uint8()),
    lambda view: Tensor.from_bytes(view, [view.nbytes], DType.uint8()).to_numpy().reshape(-1, MIB).T[:, :1],
    lambda view: np.from_dlpack(Tensor.from_bytes(view, [view.nbytes], DType.uint8())),
]


@pytest.mark.parametrize("hold", HOLDERS)
def test_memory_that_is_viewed_in_any_way_is_not_used_again(hold):
    from_here = pool()
    view = from_here.take(4 * MIB)
    where, kept = address(view), hold(view)
    del view
    gc.collect()
    other = from_here.take(4 * MIB)
    assert address(other) != where
    del kept
    assert address(from_here.take(4 * MIB)) == where


def test_the_smallest_buffer_that_fits_is_taken_and_none_that_is_far_too_large():
    from_here = pool()
    large, small = from_here.take(8 * MIB), from_here.take(5 * MIB)
    where = address(small)
    del large, small
    assert address(from_here.take(4 * MIB)) == where
    first = from_here.take(2 * MIB)
    assert first.obj.nbytes < 3 * MIB


def test_what_is_given_out_is_bounded_with_both_numbers():
    from_here = pool(max_mib=10)
    kept = from_here.take(7 * MIB)
    with pytest.raises(ResourceExhausted, match=f"{4 * MIB} bytes of tensors .* {7 * MIB} are held, .* {10 * MIB} at"):
        from_here.take(4 * MIB)
    again = from_here.take(3 * MIB)
    del kept, again
    assert from_here.take(10 * MIB).nbytes == 10 * MIB


def test_what_is_free_goes_back_above_what_may_be_kept():
    from_here = pool(max_mib=100, kept_mib=10)
    first, second = from_here.take(6 * MIB), from_here.take(9 * MIB)
    del first, second
    third = from_here.take(2 * MIB)
    assert sum(buffer.nbytes for buffer in from_here._buffers) < 11 * MIB
    del third
