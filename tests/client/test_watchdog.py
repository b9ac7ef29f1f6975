"""The watchdog of the blocking gRPC client: waits end in time, in any order, and its thread goes when it is idle."""

import threading
import time

import pytest

from client.harness import LIMIT_S
from quill.client import watchdog
from quill.client.watchdog import Watch, Watchdog


@pytest.fixture(autouse=True)
def _short_linger(monkeypatch):
    monkeypatch.setattr(watchdog, "_LINGER_S", 0.05)


class Barks:
    """Waits for the watches that fire, and notes their order."""

    def __init__(self):
        self._condition = threading.Condition()
        self.order = []

    def watch(self, name):
        def bark():
            with self._condition:
                self.order.append(name)
                self._condition.notify_all()

        return Watch(bark)

    def until(self, count):
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.order) >= count, LIMIT_S)


@pytest.fixture
def barks():
    return Barks()


@pytest.fixture
def dog():
    return Watchdog()


def soon(delay_s):
    return time.monotonic() + delay_s


def until_idle():
    deadline = time.monotonic() + LIMIT_S
    while any(thread.name == "quill-watchdog" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_waits_end_in_the_order_of_their_deadlines(dog, barks):
    watches = {name: barks.watch(name) for name in "abc"}
    for name, delay_s in (("c", 0.3), ("a", 0.1), ("b", 0.2)):
        dog.begin(watches[name], soon(delay_s))
    barks.until(3)
    assert barks.order == ["a", "b", "c"]
    assert all(watch.fired for watch in watches.values())


def test_a_wait_may_last_longer_than_the_thread_lingers(dog, barks):
    watch = barks.watch("a")
    dog.begin(watch, soon(0.3))
    barks.until(1)
    assert watch.fired


def test_a_wait_that_ended_in_time_does_not_fire(dog, barks):
    early, late = barks.watch("early"), barks.watch("late")
    dog.begin(early, soon(0.1))
    dog.end(early)
    dog.begin(late, soon(0.2))
    barks.until(1)
    assert barks.order == ["late"]
    assert not early.fired


def test_a_later_wait_of_the_same_reader_has_its_own_deadline(dog, barks):
    watch, other = barks.watch("a"), barks.watch("b")
    dog.begin(watch, soon(0.1))
    dog.end(watch)
    dog.begin(watch, soon(0.3))
    dog.begin(other, soon(0.2))
    barks.until(2)
    assert barks.order == ["b", "a"]


def test_an_earlier_wait_of_the_same_reader_is_noticed(dog, barks):
    watch = barks.watch("a")
    dog.begin(watch, soon(60))
    dog.end(watch)
    dog.begin(watch, soon(0.1))
    barks.until(1)
    dog.forget(watch)
    until_idle()


def test_a_reader_that_waits_often_has_one_entry(dog, barks):
    watch = barks.watch("a")
    for _ in range(1000):
        dog.begin(watch, soon(60))
        dog.end(watch)
    assert len(dog._schedule) == 1
    dog.forget(watch)
    until_idle()


def test_a_wait_without_a_deadline_starts_nothing(dog, barks):
    dog.begin(barks.watch("a"), None)
    assert dog._thread is None


def test_the_thread_ends_when_there_is_nothing_to_watch_and_begins_again(dog, barks):
    for count in (1, 2):
        watch = barks.watch(count)
        dog.begin(watch, soon(0.05))
        barks.until(count)
        dog.forget(watch)
        until_idle()


def test_many_readers_at_once(dog, barks):
    watches = [barks.watch(number) for number in range(200)]
    threads = [threading.Thread(target=dog.begin, args=(watch, soon(0.1))) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    barks.until(200)
    assert sorted(barks.order) == list(range(200))


def test_readers_come_and_go_while_a_bark_waits_for_a_lock(dog, barks):
    """A thread may hold a lock of grpc's, which a bark needs, while a finalizer in it forgets a watch."""
    lock, barking = threading.Lock(), threading.Event()

    def bark():
        barking.set()
        with lock:
            pass

    watch, other = Watch(bark), barks.watch("other")
    with lock:
        dog.begin(watch, soon(0.02))
        dog.begin(other, soon(60))
        assert barking.wait(LIMIT_S)
        reader = threading.Thread(target=dog.forget, args=(other,), daemon=True)
        reader.start()
        reader.join(LIMIT_S)
        assert not reader.is_alive()
    dog.forget(watch)
    until_idle()
