"""Pushes that are killed: run as a program, so that it can fork before any thread exists.

`python -m tests.images.registry.push_lives FOLDER HOST`: for every moment of a push (a request, an answer, a part of a
body) the first life of a process is killed with SIGKILL at it, into a repository of its own. The second looks at what
the registry has, pushes again and looks again. Prints one JSON line a pair of lives.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import structlog
import trio

from tests.images.import_lives import forked
from tests.images.registry.servers import Settings
from tests.images.stores import disk_store
from twinshare.agent.images.contract_samples import pieces, quiet, with_boot_sector
from twinshare.agent.images.registry import packs, push
from twinshare.agent.images.registry.client import RegistryClient, Repository, open_registry_client
from twinshare.agent.images.registry.http_client import Body, HttpClient, Request
from twinshare.agent.images.registry.manifest import Descriptor
from twinshare.protocols.errors import ImageNotFound
from twinshare.protocols.reference import parse_reference

PACK_SIZE: Final = 256 << 10
PART: Final = 150_000
DISK: Final = with_boot_sector(Random(3).randbytes(3 << 18))


class Moments:
    """Kills this process at the moment of a number."""

    def __init__(self, last: int) -> None:
        self._last, self._seen = last, 0

    def pass_one(self) -> None:
        self._seen += 1
        if self._seen == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Count requests from both of their sides, and the parts of what they send."""
        send = HttpClient.open

        @asynccontextmanager
        async def counted(client: HttpClient, request: Request) -> AsyncIterator[httpx.Response]:
            self.pass_one()
            if request.content is not None:
                request = replace(request, content=self._counted(request.content))
            async with send(client, request) as response:
                self.pass_one()
                yield response

        HttpClient.open = counted  # type: ignore[assignment,method-assign]  # of this forked process alone

    def _counted(self, content: Any) -> Any:
        async def parts() -> AsyncGenerator[bytes, None]:
            async for part in content():
                yield part
                self.pass_one()

        return parts


class Counting(RegistryClient):
    """Keeps the digests of what had to be sent."""

    sent: list[str]

    async def put_blob(
        self, repository: Repository, digest: str, size: int, content: Body, mount_from: Sequence[str] = ()
    ) -> bool:
        sent = await super().put_blob(repository, digest, size, content, mount_from)
        if sent:
            self.sent.append(digest)
        return sent


def opened(host: str) -> AbstractAsyncContextManager[RegistryClient]:
    return open_registry_client([Settings(host)])


async def add(folder: Path) -> None:
    async with disk_store(folder) as store:
        await store.add_image("it", pieces(DISK, 1 << 20), report=quiet)


async def push_it(folder: Path, host: str, name: str) -> tuple[str, Sequence[str]]:
    async with disk_store(folder) as store, opened(host) as plain:
        client = Counting(plain.web)
        client.sent = []
        target = parse_reference(f"{host}/{name}:1")
        return await push.push_image(store, client, await store.get_image("it"), target, quiet), client.sent


async def in_registry(host: str, name: str, blobs: Sequence[str]) -> dict[str, Any]:
    """The digest of the manifest, those of the blobs, and what the manifest names that is not there."""
    async with opened(host) as client:
        repository = Repository(host, name)
        there = [digest for digest in blobs if await client.has_blob(repository, digest)]
        try:
            found = await client.manifest(repository, "1")
        except ImageNotFound:
            return {"manifest": "", "blobs": there, "missing": []}
        named: list[Descriptor] = [found.manifest.config, *found.manifest.layers]
        missing = [each.digest for each in named if not await client.has_blob(repository, each.digest)]
        return {"manifest": found.digest, "blobs": there, "missing": missing}


async def second_life(folder: Path, host: str, name: str, blobs: Sequence[str]) -> dict[str, Any]:
    async with disk_store(folder):
        left = len(list((folder / "partial").iterdir()))
    first = await in_registry(host, name, blobs)
    digest, sent = await push_it(folder, host, name)
    return {"left": left, "first": first, "digest": digest, "sent": sent, "then": await in_registry(host, name, blobs)}


def first_life(folder: Path, host: str, name: str, number: int) -> None:
    Moments(number).watch()
    trio.run(push_it, folder, host, name)


def look(folder: Path, host: str, name: str, blobs: Sequence[str]) -> None:
    print(json.dumps(trio.run(second_life, folder, host, name, blobs)))


def whole(folder: Path, host: str, report: int) -> None:
    """A push that nobody kills: what it sent."""
    trio.run(add, folder)
    digest, sent = trio.run(push_it, folder, host, "whole")
    os.write(report, json.dumps({"digest": digest, "sent": sent}).encode())


def main(folder: Path, host: str) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    packs.PACK_SIZE, push.STEP = PACK_SIZE, PART
    reading, writing = os.pipe()
    if forked(partial(whole, folder, host, writing)):
        raise SystemExit("a push that nobody kills failed")
    blobs = json.loads(os.read(reading, 65536))["sent"]
    for number in itertools.count(1):
        name = f"killed-{number}"
        code = forked(partial(first_life, folder, host, name, number))
        if code == 0:
            break
        if code != -signal.SIGKILL or forked(partial(look, folder, host, name, blobs)):
            raise SystemExit(f"{name}: the first life ended with {code}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
