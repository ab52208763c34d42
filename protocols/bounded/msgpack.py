"""msgpack: how many values a document holds and how deep they nest, read from its headers.

A byte can be a whole value: a document of a mebibyte may become 340 MiB of empty maps. No value is made here.
"""

from __future__ import annotations

from typing import Final

MAX_DEPTH: Final = 40
"""Levels of containers: free-form data may have 32, within the few of a request."""
MAX_ELEMENTS: Final = 40_000
"""Values in one request of a peer: 64 KiB of JSON, which a message may have, are 32,768 at most."""
MAX_RESULT_ELEMENTS: Final = 160_000
"""Values in one answer: peers of the first release send a whole list of VMs in one frame."""

_CONTAINER: Final = -1
_SIZED: Final = -2


def check_msgpack(data: bytes | memoryview, *, elements: int = MAX_ELEMENTS, depth: int = MAX_DEPTH) -> None:
    """Check the bounds of the first value in `data`. What is cut or no msgpack is left to the decoder.

    Raises: ValueError when it holds more than `elements` values or nests deeper than `depth`.
    """
    size, at, count, left = len(data), 0, 0, 1
    levels: list[int] = []
    while True:
        while not left:
            if not levels:
                return
            left = levels.pop()
        left -= 1
        if at >= size:
            return
        head = data[at]
        step = _STEPS[head]
        if step > 0:
            at += step
        elif step == _SIZED:
            width, extra = _LENGTHS[head]
            at += 1 + width + extra + int.from_bytes(data[at + 1 : at + 1 + width], "big")
        else:
            at, inside = _container(data, at, head)
            count += inside
            if count > elements:
                raise ValueError(f"it holds more than {elements} values")
            levels.append(left)
            left = inside
            if len(levels) > depth:
                raise ValueError(f"it nests deeper than {depth} levels")


def _container(data: bytes | memoryview, at: int, head: int) -> tuple[int, int]:
    """Return where the values of an array or map begin, and how many there are."""
    if head < 0xA0:
        return at + 1, 2 * (head & 15) if head < 0x90 else head & 15
    width = 2 if head in {0xDC, 0xDE} else 4
    number = int.from_bytes(data[at + 1 : at + 1 + width], "big")
    return at + 1 + width, number if head < 0xDE else 2 * number


def _step(head: int) -> int:
    """Return the bytes of a value of fixed size, or what kind of other value its first byte begins."""
    if head in {0x80, 0x90}:
        return 1  # an empty map or array
    if 0x80 <= head < 0xA0 or (head >= 0xDC and head < 0xE0):
        return _CONTAINER
    if 0xA0 <= head < 0xC0:
        return 1 + (head & 31)
    return _SIZED if head in _LENGTHS else _FIXED.get(head, 1)


_FIXED: Final = {
    0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
    0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18,
}  # fmt: skip
"""Floats, integers and extensions of a fixed size."""
_LENGTHS: Final = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
}  # fmt: skip
"""Binaries, extensions and strings: bytes of their length, and of an extension's type."""
_STEPS: Final = tuple(_step(head) for head in range(256))
