"""Random changes to bytes: what goes wrong on a wire, and numbers at which sizes and indices go wrong."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

_NUMBERS = (
    *(0, 1, 2, 63, 64, 65, 127, 128, 255, 256, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *(1 << 32, 1 << 60, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 64),
)
# msgpack's own words: containers and lengths of every width, extensions, floats, nil, a negative number.
_WORDS = (
    *(b"\xc0", b"\xc1", b"\x80", b"\x90", b"\xa0", b"\x91", b"\x81", b"\xff", b"\xcb\x7f\xf8\0\0\0\0\0\0"),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff"),
    *(b"\xc9\xff\xff\xff\xff\x01", b"\xd4\x01\x90", b"\xd6\xff\0\0\0\0", b"\xd3" + b"\x80" + bytes(7)),
    *(b"\x91" * 600, b"\xcf" + b"\xff" * 8, b"\xa2\xc3\x28"),
)
_LONGEST = 1 << 17


class Mutator:
    """Changed copies of what is in `corpus`; the same seed makes the same ones."""

    def __init__(self, corpus: Sequence[bytes], seed: int) -> None:
        self.random = random.Random(seed)
        self.corpus = list(corpus)
        self._ways: list[Callable[[bytearray, int, int], None]] = [
            *(self._flip, self._put_byte, self._put_number, self._put_word, self._erase),
            *(self._repeat, self._insert, self._cross, self._cut),
        ]

    def next(self) -> bytes:
        """One more."""
        return self.change(self.random.choice(self.corpus))

    def change(self, content: bytes, most: int = 3) -> bytes:
        """`content` with up to `most` changes."""
        changed = bytearray(content)
        for _ in range(self.random.randint(1, most)):
            if not changed:
                changed.append(self.random.randrange(256))
            at = self.random.randrange(len(changed))
            length = min(1 + int(self.random.expovariate(0.1)), len(changed) - at)
            self.random.choice(self._ways)(changed, at, length)
        return bytes(changed[:_LONGEST])

    def _flip(self, content: bytearray, at: int, _: int) -> None:
        content[at] ^= 1 << self.random.randrange(8)

    def _put_byte(self, content: bytearray, at: int, _: int) -> None:
        content[at] = self.random.randrange(256)

    def _put_number(self, content: bytearray, at: int, _: int) -> None:
        order, width = self.random.choice("<>"), self.random.choice((1, 2, 4, 8))
        packed = struct.pack(f"{order}Q", self.random.choice(_NUMBERS))
        content[at : at + width] = packed[-width:] if order == ">" else packed[:width]

    def _put_word(self, content: bytearray, at: int, length: int) -> None:
        content[at : at + self.random.choice((0, 1, length))] = self.random.choice(_WORDS)

    def _erase(self, content: bytearray, at: int, length: int) -> None:
        del content[at : at + length]

    def _repeat(self, content: bytearray, at: int, length: int) -> None:
        content[at:at] = content[at : at + length] * self.random.randint(1, 3)

    def _insert(self, content: bytearray, at: int, length: int) -> None:
        content[at:at] = self.random.randbytes(length)

    def _cross(self, content: bytearray, at: int, _: int) -> None:
        """The end of another one behind the front of this one."""
        other = self.random.choice(self.corpus)
        content[at:] = other[self.random.randint(0, len(other)) :]

    def _cut(self, content: bytearray, at: int, _: int) -> None:
        del content[at:]


_VALUES = (
    *(-1, 0, 1, 2, 31, 32, 255, 256, 1023, 1024, 1025, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32),
    *(
        (1 << 63) - 1,
        (1 << 64) - 1,
        -(1 << 63),
        None,
        True,
        False,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "r",
        b"",
    ),
    *([], {}, [0], [-1], "x" * 5000),
)


def change_tree(content: bytes, chance: random.Random) -> bytes:
    """Msgpack with one value in it replaced, left out or there twice: what is well formed, and wrong.

    Extensions with msgpack within, as the codec writes them, are looked into.
    """
    try:
        return _encoder.encode(_changed(_decoder.decode(content), chance))
    except (msgspec.MsgspecError, RecursionError, OverflowError, TypeError, UnicodeError):
        return content


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()


def _changed(tree: Any, chance: random.Random) -> Any:
    if isinstance(tree, msgspec.msgpack.Ext) and len(tree.data):
        return msgspec.msgpack.Ext(tree.code, change_tree(bytes(tree.data), chance))
    if isinstance(tree, dict) and tree and chance.random() < 0.95:
        key = chance.choice(list(tree))
        if chance.random() < 0.05:
            return {name: value for name, value in tree.items() if name != key}
        return {**tree, key: _changed(tree[key], chance)}
    if isinstance(tree, list) and tree and chance.random() < 0.95:
        at = chance.randrange(len(tree))
        way = chance.random()
        if way < 0.06:
            return tree[:at] + tree[at + 1 :]
        if way < 0.12:
            return [*tree[:at], tree[at], *tree[at:]]
        return [*tree[:at], _changed(tree[at], chance), *tree[at + 1 :]]
    if type(tree) is int and chance.random() < 0.5:
        return tree + chance.choice((-1, 1, 16, -tree, 1 << 20))
    return chance.choice(_VALUES)
