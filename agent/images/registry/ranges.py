"""Which bytes of which packs to ask for, given the chunks that are missing. No bytes are moved here."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from .packs import Layout

MAX_RUN = 8 << 20
# Fetching so many bytes that are not wanted costs less than asking once more.
MAX_WASTE = 32 * 1024


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


def plan_runs(layout: Layout, wanted: Container[bytes]) -> list[Run]:
    """Each wanted chunk once, in the order of the packs."""
    found: dict[bytes, tuple[int, Frame]] = {}
    for (_, length, digest), frame_range in zip(layout.index, layout.ranges, strict=True):
        if digest in wanted:
            found.setdefault(digest, (frame_range.pack, Frame(frame_range.offset, frame_range.length, digest, length)))
    runs: list[Run] = []
    for pack, frame in sorted(found.values(), key=lambda item: (item[0], item[1].offset)):
        end = frame.offset + frame.length
        last = runs[-1] if runs else None
        if last and last.pack == pack and 0 <= frame.offset - last.end <= MAX_WASTE and end - last.start <= MAX_RUN:
            last.frames.append(frame)
            last.end = end
        else:
            runs.append(Run(pack, frame.offset, end, [frame]))
    return runs
