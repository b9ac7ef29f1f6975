"""Hostile bytes of protobuf messages.

Valid messages with bytes changed, cut, repeated, moved and put in, and messages of fields that are drawn one by one:
known and unknown numbers, every wire type, overlong numbers, wrong lengths, groups within groups.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from quill import proto


@dataclass
class Source:
    """Hostile bytes, from chance that can be repeated."""

    chance: random.Random
    seeds: dict[str, list[bytes]] = field(default_factory=dict)

    def message(self, kind: type[Message]) -> bytes:
        """One input."""
        if self.chance.random() < 0.4:
            return self.fields(kind.DESCRIPTOR, 0)
        data = bytearray(self.chance.choice(self.valid(kind)))
        for _ in range(self.chance.randint(0, 4)):
            self._damage(data)
        return bytes(data)

    def valid(self, kind: type[Message]) -> list[bytes]:
        """Messages that upb wrote."""
        name = kind.DESCRIPTOR.name
        if name not in self.seeds:
            self.seeds[name] = [self._filled(kind()).SerializeToString() for _ in range(200)]
        return self.seeds[name]

    def fields(self, descriptor: Any, depth: int) -> bytes:
        """Fields that are drawn one by one."""
        return b"".join(self._field(descriptor, depth) for _ in range(self.chance.randint(0, 5)))

    def _field(self, descriptor: Any, depth: int) -> bytes:
        chance = self.chance
        known = descriptor.fields_by_number
        if known and chance.random() < 0.8:
            number = chance.choice(list(known))
            if (known[number].type in (11, 12, 9)) and chance.random() < 0.8:
                return self._tag(number, 2) + self._spanned(self._content(known[number], depth))
        else:
            number = chance.choice((0, 9, 15, 16, 2047, 2**28, 2**29 - 1, 2**29))
        wire_type = chance.choice((0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7))
        if wire_type == 3:
            end = number if chance.random() < 0.8 else number + 1
            inner = self.fields(descriptor, depth + 1) if depth < 4 else b""
            if chance.random() < 0.02:
                deep = chance.randint(90, 110)
                inner = self._tag(9, 3) * deep + self._tag(9, 4) * deep
            return self._tag(number, 3) + inner + self._tag(end, 4)
        content: dict[int, Callable[[], bytes]] = {
            0: self._number,
            1: lambda: chance.randbytes(8 if chance.random() < 0.9 else 5),
            2: lambda: self._spanned(chance.randbytes(chance.randint(0, 9))),
            5: lambda: chance.randbytes(4 if chance.random() < 0.9 else 3),
        }
        return self._tag(number, wire_type) + (content[wire_type]() if wire_type in content else b"")

    def _content(self, known: Any, depth: int) -> bytes:
        """What has a length in front: a message, or text that may be none."""
        chance = self.chance
        if known.type == 11:
            return self.fields(known.message_type, depth + 1)
        return chance.choice((b"", b"x", b"scale", "µ€😀".encode(), b"\xed\xa0\x80", b"\xc0\x80", chance.randbytes(3)))

    def _spanned(self, content: bytes) -> bytes:
        length = len(content)
        if self.chance.random() < 0.05:
            length = self.chance.choice((length + 1, max(0, length - 1), 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**64 - 1))
        return self._varint(length) + content

    def _number(self) -> bytes:
        chance = self.chance
        return self._varint(
            chance.choice((0, 1, 2, 127, 128, 300, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1, chance.getrandbits(64)))
        )

    def _tag(self, number: int, wire_type: int) -> bytes:
        return self._varint(number << 3 | wire_type)

    def _varint(self, value: int) -> bytes:
        """A varint, now and then with more bytes than it needs, or than it may have."""
        out = bytearray()
        while value >> 7:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        if self.chance.random() < 0.95:
            return bytes((*out, value))
        more = self.chance.randint(0, 10 - min(len(out), 10))
        return bytes((*out, value | 0x80, *([0x80] * more), self.chance.choice((0, 0, 0, 1, 0x7F))))

    def _damage(self, data: bytearray) -> None:
        """Change the bytes of a message somewhere."""
        chance = self.chance
        place, length = chance.randint(0, len(data)), chance.randint(1, 12)
        match chance.randrange(7):
            case 0 if place < len(data):
                data[place] = chance.randrange(256)
            case 1 if place < len(data):
                data[place] ^= 1 << chance.randrange(8)
            case 2:
                del data[place:]
            case 3:
                data[place:place] = chance.randbytes(length)
            case 4:
                del data[place : place + length]
            case 5:
                data += data[place : place + length]
            case _:
                data[place:place] = self.fields(proto.TensorMeta.DESCRIPTOR, 2)

    def _filled(self, message: Any) -> Any:
        """A message with any of its fields set."""
        chance = self.chance
        for known in message.DESCRIPTOR.fields:
            if chance.random() < 0.3:
                continue
            several = chance.randint(0, 3) if known.is_repeated else 1
            if known.message_type is not None and known.message_type.GetOptions().map_entry:
                getattr(message, known.name).update({self._text(): self._text() for _ in range(several)})
            elif known.is_repeated:
                values = getattr(message, known.name)
                for _ in range(several):
                    if known.type == 11:
                        self._filled(values.add())
                    else:
                        values.append(self._scalar(known))
            elif known.type == 11:
                self._filled(getattr(message, known.name)).SetInParent()
            else:
                setattr(message, known.name, self._scalar(known))
        return message

    def _scalar(self, known: Any) -> Any:
        chance = self.chance
        if known.type == 9:
            return self._text()
        if known.type == 12:
            return chance.randbytes(chance.choice((0, 1, 8, 127, 128, 300)))
        if known.type == 8:
            return chance.random() < 0.5
        signed, bits = known.cpp_type in (1, 2, 8), 64 if known.cpp_type in (2, 4) else 32
        value = chance.choice((0, 1, 2, 8, 127, 128, 70000, chance.getrandbits(bits - 1)))
        return -value if signed and chance.random() < 0.2 else value

    def _text(self) -> str:
        return self.chance.choice(("", "x", "scale", "µ€😀", "name" * 40))
