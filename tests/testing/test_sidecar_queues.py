"""What waits in the sidecar is bounded, whatever nobody asks for."""

from quill.testing.sidecar.queues import MAILBOX_ITEMS, MAILBOXES, Fifo, Mailboxes

ITEM = {"token": "x"}


def test_a_fifo_keeps_the_newest_128():
    fifo = Fifo()
    for n in range(200):
        fifo.put({"request_id": f"sdk-{n}"})
    assert len(fifo) == 128
    assert fifo.pop(None) == {"request_id": "sdk-72"}
    assert fifo.pop("sdk-199") == {"request_id": "sdk-199"}
    assert fifo.pop("sdk-199") is None
    assert len(fifo) == 126


def test_the_first_mailbox_goes_when_there_is_too_much_in_all():
    boxes = Mailboxes()
    first, second = boxes.open("first"), boxes.open("second")
    for _ in range(MAILBOX_ITEMS // 2):
        boxes.put(first, ITEM)
        boxes.put(second, ITEM)
    assert len(boxes) == MAILBOX_ITEMS
    boxes.put(second, ITEM)
    assert len(boxes) == MAILBOX_ITEMS // 2 + 1
    boxes.put(first, ITEM)
    assert boxes.pop("first") is None
    assert boxes.pop("second") == ITEM
    assert len(boxes) == MAILBOX_ITEMS // 2


def test_the_first_mailbox_goes_when_they_are_too_many():
    boxes = Mailboxes()
    for n in range(MAILBOXES + 1):
        boxes.put(boxes.open(f"sdk-{n}"), ITEM)
    assert len(boxes) == MAILBOXES
    assert boxes.peek("sdk-0") is None
    assert boxes.peek("sdk-1") == ITEM


def test_a_mailbox_goes_with_its_last_result_and_its_last_writer():
    boxes = Mailboxes()
    mailbox = boxes.open("sdk")
    boxes.put(mailbox, ITEM)
    assert boxes.pop("sdk") == ITEM
    boxes.put(mailbox, ITEM)
    mailbox.writers -= 1
    assert boxes.pop("sdk") == ITEM
    boxes.put(mailbox, ITEM)
    assert len(boxes) == 0


def test_two_writers_of_one_request_share_a_mailbox():
    boxes = Mailboxes()
    assert boxes.open("sdk") is boxes.open("sdk")


def test_what_was_not_asked_for_in_time_expires():
    boxes = Mailboxes()
    boxes.put(boxes.open("old"), ITEM)
    boxes.expire(60)
    assert len(boxes) == 1
    boxes.expire(-1)
    assert len(boxes) == 0
    assert boxes.pop("old") is None
