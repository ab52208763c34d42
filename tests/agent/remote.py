"""Registries in memory for whole nodes: what is published there can be pulled, slowly or not at all if a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from twinshare.agent import backends
from twinshare.agent.images.memory import MemoryImageExchange
from twinshare.agent.images.port import NODE, Report, Requester
from twinshare.protocols.errors import TwinshareError
from twinshare.protocols.image import Image
from twinshare.protocols.operation import Progress


class Remote:
    """`pulls` counts the fetches that were begun; they wait while `closed`, and fail with `failure` if there is one."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.pulls = 0
        self.begun = trio.Event()
        self.opened = trio.Event()
        self.opened.set()
        self.failure: TwinshareError | None = None

    def close(self) -> None:
        """Let fetches wait until `opened` is set."""
        self.opened = trio.Event()


class SlowExchange(MemoryImageExchange):
    def __init__(self, store: Any, remote: Remote) -> None:
        super().__init__(store, remote.contents)
        store.contents_of = lambda digest: store.base_path(digest).read_bytes()
        self._there = remote

    async def pull_image(
        self,
        ref: str,
        *,
        report: Report,
        name: str = "",
        sha256: str = "",
        requester: Requester = NODE,
        raw: bool = False,
    ) -> Image:
        there = self._there
        there.pulls += 1
        report(Progress(done=1, total=2, unit="bytes", message="fetching"))
        there.begun.set()
        await there.opened.wait()
        if there.failure is not None:
            raise there.failure
        return await super().pull_image(ref, report=report, name=name, sha256=sha256, requester=requester, raw=raw)


def install(monkeypatch: pytest.MonkeyPatch) -> Remote:
    """From now on nodes that are opened pull from the returned place."""
    remote = Remote()

    @asynccontextmanager
    async def open_exchange(store: Any, **_settings: Any) -> AsyncIterator[SlowExchange]:
        yield SlowExchange(store, remote)

    monkeypatch.setattr(backends, "open_image_exchange", open_exchange)
    return remote
