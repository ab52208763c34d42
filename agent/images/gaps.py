"""Which chunks of an index are missing, found by what they hold: some seven bytes of memory for each chunk."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from .index import ChunkIndex

_FIRST, _REPEAT = 1, 2
_KIND = 3  # these bits of a mark, and the others are of the hash: few chunks of a chain have to be read


class Gaps:
    """A hash table of places in the index, chained. Whoever changes it holds the partial disk's lock.

    Chains are numbers plus one in two arrays: `_heads` by digest, `_next` by place. The hash is Python's, which is
    keyed: nobody can make an index whose chunks all fall into one chain.
    """

    def __init__(self, index: ChunkIndex) -> None:
        self._index = index
        self._mask = (1 << max(4, (len(index) // 2).bit_length())) - 1
        self._heads = array("I", bytes(4 * (self._mask + 1)))
        self._next = array("I", bytes(4 * len(index)))
        self._marks = bytearray(len(index))
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def __contains__(self, digest: bytes) -> bool:
        mark = _mark(digest)
        place = self._heads[hash(digest) & self._mask]
        while place:
            if self._marks[place - 1] & ~_KIND == mark and self._index.chunk(place - 1)[2] == digest:
                return True
            place = self._next[place - 1]
        return False

    def add(self, place: int, digest: bytes) -> None:
        """The chunk at this place of the index, which has this digest, is missing."""
        slot = hash(digest) & self._mask
        self._marks[place] = _mark(digest) | (_REPEAT if digest in self else _FIRST)
        self._next[place], self._heads[slot] = self._heads[slot], place + 1
        self._count += 1

    def pop(self, digest: bytes) -> list[tuple[int, int]]:
        """The places (offset, length) that a chunk is missing at, which are not missing any more."""
        found = []
        slot, mark = hash(digest) & self._mask, _mark(digest)
        number, self._heads[slot] = self._heads[slot], 0
        while number:
            place, number = number - 1, self._next[number - 1]
            if self._marks[place] & ~_KIND == mark:
                offset, length, there = self._index.chunk(place)
                if there == digest:
                    found.append((offset, length))
                    self._marks[place] = 0
                    continue
            self._next[place], self._heads[slot] = self._heads[slot], place + 1
        self._count -= len(found)
        return found

    def wanted(self) -> Iterator[tuple[int, tuple[int, int, bytes]]]:
        """Each missing chunk with its place in the index, once, in the order of the disk."""
        return ((place, chunk) for place, chunk in enumerate(self._index) if self.is_wanted(place))

    def is_wanted(self, place: int) -> bool:
        """Whether the chunk at this place is missing, and none before it that holds the same."""
        return self._marks[place] & _KIND == _FIRST


def _mark(digest: bytes) -> int:
    return hash(digest) >> 40 & 0xFC
