"""Regions of shared memory, between processes that live, die and lie."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from quill.errors import InvalidUsage, ResourceExhausted
from quill.lanes.shm import Region, neighbourhood, remove_left

SHM = Path("/dev/shm")  # noqa: S108 - where regions are
MIB = 2**20


def names():
    return {name for name in os.listdir(SHM) if name.startswith("quill-")}


class Other:
    """Another process that has a Region."""

    def __init__(self, code):
        script = f"import sys; from quill.lanes.shm import *; {code}; print(region.name, flush=True); sys.stdin.read()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.name = self._process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.kill()

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def region():
    region = Region.create(4 * MIB)
    yield region
    region.close()


def test_both_processes_see_what_either_writes(region):
    region.view(10, 3)[:] = b"abc"
    with Other(
        f"region = Region.attach({region.name!r}, {4 * MIB}); "
        "assert region.view(10, 3) == b'abc'; region.view(20, 3)[:] = b'xyz'"
    ):
        assert region.view(20, 3) == b"xyz"


def test_the_name_is_gone_when_both_have_it_and_the_memory_stays(region):
    assert region.name in names()
    guest = Region.attach(region.name, 4 * MIB)
    assert region.name not in names()
    region.close()
    guest.view(4 * MIB - 1, 1)[:] = b"z"
    assert guest.view(4 * MIB - 1, 1) == b"z"
    guest.close()


def test_the_memory_is_there_before_it_is_touched(region):
    shown = (SHM / region.name).stat()
    assert shown.st_blocks * 512 >= 4 * MIB
    assert shown.st_mode & 0o777 == 0o600


def test_a_view_past_the_end_is_refused_with_both_numbers(region):
    assert region.view(4 * MIB, 0) == b""
    with pytest.raises(InvalidUsage, match="2 bytes at 4194303 end at 4194305, the region has 4194304"):
        region.view(4 * MIB - 1, 2)
    with pytest.raises(InvalidUsage, match="end at 18446744073709551616, the region has 4194304"):
        region.view(2**64 - 1, 1)


def test_each_side_knows_whether_the_other_is_there(region):
    assert not region.has_other
    with Other(f"region = Region.attach({region.name!r}, {4 * MIB}); assert region.has_other") as other:
        assert region.has_other
        other.kill()
        assert not region.has_other
    with Other(f"region = Region.create({MIB})") as other:
        guest = Region.attach(other.name, MIB)
        assert guest.has_other
        other.kill()
        assert not guest.has_other
        guest.close()


def test_what_is_viewed_is_lent_until_the_last_view_is_gone(region):
    assert not region.is_lent
    array = np.frombuffer(region.view(0, 8), np.uint8)
    part = array[2:4]
    del array
    assert region.is_lent
    del part
    assert not region.is_lent


def test_a_view_outlives_the_closing_of_its_region(region):
    view = region.view(0, 3)
    view[:] = b"abc"
    region.close()
    region.close()
    assert view == b"abc"
    assert region.name not in names()


def test_the_other_side_hears_of_a_closing_though_a_view_is_left(region):
    guest = Region.attach(region.name, 4 * MIB)
    view = region.view(0, 3)
    assert guest.has_other
    region.close()
    assert not guest.has_other
    assert view == bytes(3)
    guest.close()


@pytest.mark.parametrize("size", [MIB, 64 * MIB])
def test_a_region_that_was_closed_is_mapped_no_more(size):
    def is_mapped():
        return region.name in Path("/proc/self/maps").read_text()

    region = Region.create(size)
    assert is_mapped()
    region.close()
    deadline_s = time.monotonic() + 20
    while is_mapped() and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert not is_mapped()


@pytest.mark.parametrize("name", ["", "../etc/passwd", "/etc/passwd", "quill-1-1-" + "g" * 32, "quill-1-1-", "x" * 300])
def test_a_name_that_is_no_regions_is_refused(name):
    with pytest.raises(InvalidUsage, match="is no name of a region"):
        Region.attach(name, MIB)


def test_a_region_that_is_not_there_is_refused():
    with pytest.raises(InvalidUsage, match="cannot be opened: No such file"):
        Region.attach("quill-1-1-" + "0" * 32, MIB)


def test_a_stale_region_is_refused():
    with Other(f"region = Region.create({MIB})") as other:
        other.kill()
        with pytest.raises(InvalidUsage, match=f"{other.name} is stale: its creator is gone"):
            Region.attach(other.name, MIB)
        assert remove_left() >= 1


def test_a_region_of_another_size_is_refused_with_both_numbers(region):
    with pytest.raises(InvalidUsage, match="has 4194304 bytes, and 4194305 were told"):
        Region.attach(region.name, 4 * MIB + 1)


def test_a_region_that_others_may_open_is_foreign(region):
    (SHM / region.name).chmod(0o644)
    with pytest.raises(InvalidUsage, match=r"is foreign: it belongs to user \d+ with mode -rw-r--r--"):
        Region.attach(region.name, 4 * MIB)


def test_a_link_is_no_region(region):
    link = SHM / ("quill-1-1-" + "1" * 32)
    link.symlink_to(SHM / region.name)
    try:
        with pytest.raises(InvalidUsage, match="cannot be opened"):
            Region.attach(link.name, 4 * MIB)
    finally:
        link.unlink()


def test_a_region_has_one_guest(region):
    other_name = SHM / ("quill-1-1-" + "2" * 32)
    os.link(SHM / region.name, other_name)
    guest = Region.attach(region.name, 4 * MIB)
    try:
        with pytest.raises(InvalidUsage, match="has a guest already"):
            Region.attach(other_name.name, 4 * MIB)
    finally:
        other_name.unlink()
        guest.close()


def test_what_does_not_fit_is_refused_with_both_numbers_and_leaves_nothing():
    before = names()
    with pytest.raises(ResourceExhausted, match=r"\d{15} bytes cannot be shared, /dev/shm has \d+ free"):
        Region.create(2**49)
    assert names() == before


def test_a_region_that_this_process_has_no_room_for_is_refused():
    with contextlib.closing(Region.create(64 * MIB)) as region:
        most = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 16 * MIB, most[1]))
        try:
            with pytest.raises(InvalidUsage, match="of 67108864 bytes cannot be mapped: Cannot allocate memory"):
                Region.attach(region.name, 64 * MIB)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, most)


def test_what_dead_creators_left_is_removed_and_nothing_else(region):
    with Other(f"region = Region.create({MIB})") as alive, Other(f"region = Region.create({MIB})") as dead:
        dead.kill()
        assert {alive.name, dead.name, region.name} <= names()
        assert remove_left() >= 1
        assert {alive.name, region.name} <= names()
        assert dead.name not in names()


def test_a_creator_whose_number_is_unknown_here_and_who_holds_its_region_keeps_it(region):
    # As one in another namespace of processes: its number is nobody's here, and its lock is held.
    odd = region.name.replace(f"quill-{os.getpid()}-", "quill-4194304999-")
    (SHM / region.name).rename(SHM / odd)
    try:
        remove_left()
        assert odd in names()
    finally:
        (SHM / odd).unlink()


def test_a_number_that_another_process_has_now_does_not_keep_a_region():
    with Other(f"region = Region.create({MIB})") as dead:
        dead.kill()
        pid, start = dead.name.split("-")[1:3]
        reused = dead.name.replace(f"-{pid}-{start}-", f"-{os.getpid()}-{int(start) + 1}-")
        (SHM / dead.name).rename(SHM / reused)
        assert remove_left() >= 1
        assert reused not in names()


def test_a_forked_process_that_ends_takes_no_name_away():
    fork = f"region = Region.create({MIB}); import os; os.fork() or (region.close(), os._exit(0)); os.wait()"
    with Other(fork) as other:
        assert other.name in names()
        other.kill()
    remove_left()


def test_the_neighbourhood_is_the_same_for_processes_of_one_user():
    script = "from quill.lanes.shm import neighbourhood; print(neighbourhood())"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.strip() == neighbourhood() != ""
