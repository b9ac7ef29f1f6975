"""The wire format of protobuf, for messages that are written and read by hand.

What is accepted is what upb accepts, the parser beneath protobuf's Python: tags and lengths of at most five bytes,
varints of at most ten whose bits above the 64th are lost, messages and groups within each other to a depth of 100.

Source: https://protobuf.dev/programming-guides/encoding/, and upb where that leaves a choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat

from quill.errors import InvalidUsage
from quill.limits import MAX_MESSAGE_DEPTH
from quill.wire.buffer import Buffer

VARINT, FIXED64, LENGTH, START_GROUP, END_GROUP, FIXED32 = range(6)
"""Wire types: the low three bits of a tag. The bits above them are the number of the field."""

MAX_MESSAGE_BYTES = 2**31 - 1
"""What one message holds, and one field of it (https://protobuf.dev/programming-guides/proto-limits/)."""

MAX_FIELDS = 32_768
"""How many fields are read of a message, with those of all messages in it, and elements of packed fields: what takes
some twenty milliseconds. A thousand named tensors have 10,000."""

"""What is read. A memoryview is of format B."""

KEY, VALUE = 1 << 3 | LENGTH, 2 << 3 | LENGTH
"""The tags within an entry of a map of strings."""

_MASK_64 = 2**64 - 1
_MIN_TAG, _MAX_TAG = 1 << 3, 2**32 - 1
_MAX_TAG_BYTES = 5
_MAX_VARINT_BYTES = 10
_MORE = 0x80
"""The bit of a varint's byte that says that another follows."""
_ONE_BYTE = [bytes((value,)) for value in range(_MORE)]


class MalformedMessage(InvalidUsage):
    """The bytes are no message of their type, or have more fields than are read."""


class Reader:
    """What reads one message, and the messages in it.

    Args:
        data: The serialized message.
    """

    __slots__ = ("_left", "data")

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self._left = repeat(None, MAX_FIELDS)

    def fields(self, place: int, end: int, depth: int) -> Iterator[tuple[int, int, int]]:
        """The fields of a message in their order: the tag, and what follows it.

        A varint gives its value modulo 2**64, and 0. Anything else gives its first byte and the place behind its last.
        What has another wire type than is expected has another tag, too, so it is as a field that nobody knows. A
        group is one field, which nobody knows.

        Args:
            place: The first byte of the message.
            end: The place behind its last.
            depth: How many messages it is in.

        Raises:
            MalformedMessage: A field is cut off, of no wire type, too deep or one too many.
        """
        data = self.data
        for _ in self._left:
            if place == end:
                return
            tag = data[place]
            place += 1
            if tag >= _MORE:
                tag, place = _varint(data, place - 1, end, _MAX_TAG_BYTES)
            if not _MIN_TAG <= tag <= _MAX_TAG:
                raise MalformedMessage(f"the tag before byte {place} is {tag}, there are {_MIN_TAG} to {_MAX_TAG}")
            wire_type = tag & 7
            if wire_type == LENGTH:
                # Most lengths have one byte.
                if place < end and (length := data[place]) < _MORE:
                    place += 1
                else:
                    length, place = _varint(data, place, end, _MAX_TAG_BYTES)
                _check_left(place, length, end)
                yield tag, place, place + length
                place += length
            elif wire_type == VARINT:
                value, place = _varint(data, place, end, _MAX_VARINT_BYTES)
                yield tag, value, 0
            elif wire_type == START_GROUP:
                first, place = place, self._behind_group(place, end, [tag], depth)
                yield tag, first, place
            else:
                length = _fixed_bytes(wire_type, place)
                _check_left(place, length, end)
                yield tag, place, place + length
                place += length
        raise _too_many_fields()

    def packed(self, place: int, end: int) -> Iterator[int]:
        """The elements of a packed field of varints, each modulo 2**64.

        Raises:
            MalformedMessage: The last is cut off, one is too long, or there is one too many.
        """
        for _ in self._left:
            if place == end:
                return
            value, place = _varint(self.data, place, end, _MAX_VARINT_BYTES)
            yield value
        raise _too_many_fields()

    def string(self, first: int, behind: int) -> str:
        """The string in these bytes.

        Raises:
            MalformedMessage: It is not UTF-8.
        """
        try:
            return str(self.data[first:behind], "utf-8")
        except UnicodeDecodeError as error:
            raise MalformedMessage(f"the string at byte {first} is not UTF-8 at byte {first + error.start}") from None

    def view(self, first: int, behind: int) -> memoryview:
        """These bytes, where they lie."""
        return memoryview(self.data)[first:behind]

    def _behind_group(self, place: int, end: int, groups: list[int], depth: int) -> int:
        """The place behind a group that nobody reads; ``groups`` has its tag, and then those of the groups in it."""
        data = self.data
        for _ in self._left:
            if depth + len(groups) > MAX_MESSAGE_DEPTH:
                raise MalformedMessage(f"messages and groups lie more than {MAX_MESSAGE_DEPTH} deep within each other")
            # Fields in such a group may have the number 0: upb does not look.
            tag, place = _varint(data, place, end, _MAX_TAG_BYTES)
            if tag > _MAX_TAG:
                raise MalformedMessage(f"the tag before byte {place} is {tag}, the most is {_MAX_TAG}")
            wire_type = tag & 7
            if wire_type == VARINT:
                _, place = _varint(data, place, end, _MAX_VARINT_BYTES)
            elif wire_type == START_GROUP:
                groups.append(tag)
            elif wire_type == END_GROUP and tag >> 3 == groups[-1] >> 3:
                groups.pop()
                if not groups:
                    return place
            else:
                if wire_type == LENGTH:
                    length, place = _varint(data, place, end, _MAX_TAG_BYTES)
                else:
                    length = _fixed_bytes(wire_type, place)
                _check_left(place, length, end)
                place += length
        raise _too_many_fields()


def signed(value: int) -> int:
    """The int64 of a varint modulo 2**64: two's complement."""
    return value - 2**64 if value >> 63 else value


def encoded_varint(value: int) -> bytes:
    """A varint: seven bits a byte, lowest first, the top bit set on all but the last. A negative one as int64."""
    if 0 <= value < _MORE:
        return _ONE_BYTE[value]
    value &= _MASK_64
    out = bytearray()
    while value >= _MORE:
        out.append(value & (_MORE - 1) | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


def put(out: bytearray, tag: int, content: bytes | bytearray | memoryview) -> None:
    """Write a field that has its size in front. The tag has one byte, here and below: fields 1 to 15."""
    out.append(tag)
    out += encoded_varint(len(content))
    out += content


def put_number(out: bytearray, tag: int, value: int) -> None:
    """Write a varint, unless it is 0, which is what no field means."""
    if value:
        out.append(tag)
        out += encoded_varint(value)


def put_string(out: bytearray, tag: int, value: str) -> None:
    """Write a string, unless it is empty."""
    if value:
        put(out, tag, utf8(value))


def put_packed(out: bytearray, tag: int, values: Iterable[int]) -> None:
    """Write a packed field of varints, unless there are none."""
    content = b"".join(map(encoded_varint, values))
    if content:
        put(out, tag, content)


def put_map(out: bytearray, tag: int, entries: Mapping[str, str]) -> None:
    """Write a map. Its entries have key and value, be these empty or not, as protobuf's own have."""
    for key, value in entries.items():
        entry = bytearray()
        put(entry, KEY, utf8(key))
        put(entry, VALUE, utf8(value))
        put(out, tag, entry)


def utf8(value: str) -> bytes:
    """The bytes of a string.

    Raises:
        InvalidUsage: It has a lone surrogate.
    """
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidUsage(f"{value!r} has a lone surrogate at index {error.start}, which has no UTF-8") from None


def _varint(data: Buffer, place: int, end: int, most_bytes: int) -> tuple[int, int]:
    """A varint modulo 2**64, and the place behind it."""
    value = shift = 0
    for position in range(place, min(place + most_bytes, end)):
        byte = data[position]
        if byte < _MORE:
            return (value | byte << shift) & _MASK_64, position + 1
        value |= (byte - _MORE) << shift
        shift += 7
    if end - place < most_bytes:
        raise MalformedMessage(f"a number at byte {place} goes on behind the end of its message, byte {end}")
    raise MalformedMessage(f"the number at byte {place} has more than {most_bytes} bytes")


def _check_left(place: int, length: int, end: int) -> None:
    if length > end - place:
        raise MalformedMessage(f"a field at byte {place} has {length} bytes, its message has {end - place} left")


def _fixed_bytes(wire_type: int, place: int) -> int:
    if wire_type == FIXED32:
        return 4
    if wire_type == FIXED64:
        return 8
    raise MalformedMessage(f"the field before byte {place} has wire type {wire_type}, which cannot be there")


def _too_many_fields() -> MalformedMessage:
    return MalformedMessage(f"the message has more than {MAX_FIELDS} fields, elements of packed fields included")
