"""Chunks over a connection of their own: what one end asks and the other sends, and ends that do not keep to it."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from twinshare.agent.images import bulk
from twinshare.agent.images.bulk import Batch, Pace, answer_questions, fetch
from twinshare.agent.images.index import ChunkIndex, index_bytes
from twinshare.agent.images.peer_serve import SharedDisk
from twinshare.protocols.blob import LENGTH, BlobWant
from twinshare.protocols.errors import PeerMisbehaved, PeerUnreachable
from twinshare.protocols.tunnel import encode

DISK = random.Random(4).randbytes(3 << 20)
WITHIN = 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SharedDisk]:
    path = tmp_path / "disk"
    path.write_bytes(DISK)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    yield SharedDisk(fd, index_bytes(DISK))
    os.close(fd)


@contextmanager
def answering(work: Callable[[socket.socket], object]) -> Iterator[socket.socket]:
    """The near end of a connection whose far end is worked by a thread; both are closed."""
    near, far = socket.socketpair()
    with ThreadPoolExecutor(1) as pool, near, far:
        done = pool.submit(work, far)
        try:
            yield near
        finally:
            near.shutdown(socket.SHUT_RDWR)
            done.result(60)


def batches(index: ChunkIndex) -> list[Batch]:
    return [list(range(at, min(at + 7, len(index)))) for at in range(0, len(index), 7)]


def take_from(left: list[Batch]) -> Callable[[], Batch | None]:
    return lambda: left.pop(0) if left else None


def kept(_batch: Batch, _frames: list[memoryview]) -> None:
    """It is not looked at."""


def test_all_that_is_asked_for_comes_in_its_order(disk: SharedDisk) -> None:
    wanted, got = batches(disk.index), list[bytes]()

    def keep(batch: Batch, frames: list[memoryview]) -> None:
        assert len(frames) == len(batch)
        got.append(b"".join(LENGTH.pack(len(frame)) + bytes(frame) for frame in frames))

    with answering(partial(answer_questions, disk=disk, within=WITHIN)) as near:
        assert fetch(near, take_from(list(wanted)), keep, WITHIN)
    again = SharedDisk(disk._fd, disk.index)
    assert list(map(len, got)) == [sum(map(len, again.pack(batch))) for batch in wanted]


def announce(size: int) -> Callable[[socket.socket], object]:
    return lambda far: far.sendall(LENGTH.pack(size))


def answer(body: bytes) -> Callable[[socket.socket], object]:
    return lambda far: far.sendall(LENGTH.pack(len(body)) + body)


@pytest.mark.parametrize(
    ("far", "error"),
    [
        (announce(1 << 24), PeerMisbehaved),
        (announce(0), PeerMisbehaved),
        (answer(b"\0"), PeerMisbehaved),
        (answer(LENGTH.pack(0)), PeerMisbehaved),
        (answer(LENGTH.pack(9) + b"12345678"), PeerMisbehaved),
        (lambda far: far.sendall(LENGTH.pack(100) + b"x") or far.shutdown(socket.SHUT_WR), PeerUnreachable),
        (lambda far: far.shutdown(socket.SHUT_RDWR), PeerUnreachable),
    ],
    ids=["endless", "empty", "cut length", "no chunk", "cut frame", "cut answer", "gone"],
)
def test_what_is_no_answer(far: Callable[[socket.socket], object], error: type[Exception]) -> None:
    with answering(far) as near, pytest.raises(error):
        fetch(near, take_from([[0]]), kept, WITHIN)


def test_a_peer_that_is_silent_is_left() -> None:
    with answering(lambda _far: None) as near, pytest.raises(PeerUnreachable):
        fetch(near, take_from([[0]]), kept, 0.01)


def test_a_connection_that_is_slow_is_given_up_with_all_answers_taken(
    disk: SharedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "TRIAL", 1)
    monkeypatch.setattr(bulk, "SLOW", float("inf"))
    left, got = batches(disk.index), list[Batch]()
    whole = len(left)
    with answering(partial(answer_questions, disk=disk, within=WITHIN)) as near:
        assert not fetch(near, take_from(left), lambda batch, _frames: got.append(batch), WITHIN)
    assert 0 < len(got) < whole
    assert len(got) + len(left) == whole, "what was asked for has been taken"


@pytest.mark.parametrize(
    "question",
    [b"\xff\xff", b"\x00\x01\xc0", encode(BlobWant(chunks=[1 << 40])), encode(BlobWant(chunks=[0] * 64))],
    ids=["a long one", "nonsense", "no such chunk", "too much"],
)
def test_what_is_no_question_ends_it(disk: SharedDisk, question: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.sendall(question)
        with pytest.raises(PeerMisbehaved):
            answer_questions(far, disk, WITHIN)


def test_who_asks_nothing_is_left(disk: SharedDisk) -> None:
    near, far = socket.socketpair()
    with near, far, pytest.raises(TimeoutError):
        answer_questions(far, disk, 0.01)


def test_who_takes_nothing_is_left(disk: SharedDisk) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.sendall(encode(BlobWant(chunks=batches(disk.index)[0])) * 16)
        with pytest.raises(TimeoutError):
            answer_questions(far, disk, 0.5)


def test_the_pace_is_that_of_the_last_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace(bulk.FAST)
    pace.add(bulk.TRIAL - 1)
    assert not pace.fast
    assert not pace.slow
    now = 0.4
    pace.add(1)
    assert pace.fast
    now = 0.9
    pace.add(bulk.TRIAL)
    assert pace.slow
