"""Small answers are written at once: whole and in order, however little the kernel takes."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from tests.agent.probe import probe
from tests.api.served import served
from tests.api.test_events import listening
from twinshare.api.server import connection


async def test_what_the_kernel_does_not_take_at_once_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, turn, written = os.write, itertools.cycle((0, 1, 7, 100, None)), 0

    def write_a_part(fd: int, data: bytes) -> int:
        nonlocal written
        written += 1
        size = next(turn)
        if size == 0:
            raise BlockingIOError
        return write(fd, data[:size])

    monkeypatch.setattr(connection, "os", SimpleNamespace(write=write_a_part))
    async with served(tmp_path) as api, listening(api) as listener:
        for number in range(200):
            api.node.events.publish(probe("test.one", n=number))
        with trio.fail_after(20):
            assert [(await listener.next()).data["n"] for _ in range(200)] == list(range(200))
        for _ in range(20):
            assert (await api.get("/api/vm")) == {"vms": []}
    assert written > 20, "small answers went another way"
