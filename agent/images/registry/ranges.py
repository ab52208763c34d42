"""Which bytes of which packs to ask for, given the chunks that are missing. No bytes are moved here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from ..gaps import Gaps
from .packs import Layout

MAX_RUN = 8 << 20
# Fetching so many bytes that are not wanted costs less than asking once more.
MAX_WASTE = 32 * 1024
AT_A_TIME = 8192


@dataclass(frozen=True, slots=True)
class Frame:
    """One chunk's frame in a pack, and the chunk that is in it."""

    offset: int
    length: int
    digest: bytes
    chunk_length: int


@dataclass(slots=True)
class Run:
    """Bytes `start` to `end` of a pack, asked for at once; its frames in order."""

    pack: int
    start: int
    end: int
    frames: list[Frame]


def plan_runs(layout: Layout, gaps: Gaps) -> Iterator[Run]:
    """Each missing chunk once, in the order of the packs; of many chunks some thousands are planned at a time.

    Blocking.
    """
    missing = (
        (frame.pack, Frame(frame.offset, frame.length, digest, length))
        for place, (frame, (_, length, digest)) in enumerate(zip(layout.ranges(), layout.index, strict=True))
        if gaps.is_wanted(place)
    )
    while frames := list(islice(missing, AT_A_TIME)):
        yield from _joined(sorted(frames, key=lambda item: (item[0], item[1].offset)))


def _joined(frames: Iterable[tuple[int, Frame]]) -> Iterator[Run]:
    last: Run | None = None
    for pack, frame in frames:
        end = frame.offset + frame.length
        if last and last.pack == pack and 0 <= frame.offset - last.end <= MAX_WASTE and end - last.start <= MAX_RUN:
            last.frames.append(frame)
            last.end = end
            continue
        if last:
            yield last
        last = Run(pack, frame.offset, end, [frame])
    if last:
        yield last
