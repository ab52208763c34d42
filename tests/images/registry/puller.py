"""A process that pulls one image into a store, to be killed meanwhile.

`python -m tests.images.registry.puller STORE HOST REFERENCE FRACTION LOG`: it writes which bytes of which blobs it asks
for to LOG, says `now` when FRACTION of the disk is there, and goes on slowly from then; it says `done` at the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import trio

from tests.images.registry.servers import Settings
from tests.images.stores import disk_store
from twinshare.agent.images.port import ImportRequest, Origin
from twinshare.agent.images.registry.client import RegistryClient, Repository, open_registry_client
from twinshare.agent.images.registry.manifest import Descriptor
from twinshare.agent.images.registry.pull import pull_chunks
from twinshare.protocols.operation import Progress
from twinshare.protocols.reference import parse_reference


class Logging(RegistryClient):
    """Tells which bytes it asks for. It may be made `slow`."""

    log = -1
    slow = False

    async def range(
        self, repository: Repository, blob: Descriptor, start: int, end: int
    ) -> AsyncGenerator[bytes, None]:
        os.write(self.log, f"{blob.digest} {start} {end}\n".encode())
        async with aclosing(super().range(repository, blob, start, end)) as parts:
            async for data in parts:
                yield data
                if self.slow:
                    await trio.sleep(0.01)


async def main(folder: Path, host: str, ref: str, fraction: float, log: Path) -> None:
    def report(progress: Progress) -> None:
        there = progress.done / (progress.total or 1)
        if progress.message.startswith("fetching") and there > fraction and not client.slow:
            print("now", flush=True)
            client.slow = True

    name = parse_reference(ref)
    repository = Repository(host, name.name)
    async with disk_store(folder) as store, open_registry_client([Settings(host)]) as plain:
        client = Logging(plain.web)
        client.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        found = await client.manifest(repository, name.tag)
        await pull_chunks(store, client, repository, found, ImportRequest(name, Origin(ref), report))
    print("done", flush=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), Path(sys.argv[5]))
