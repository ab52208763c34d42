"""One real node for the tests of this folder: booting guests is what costs time, so they share what they can."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from tests.guest.disks import tick_disk, tiny_disk
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _open(data_dir: Path) -> AgentProcess:
    agent = AgentProcess(data_dir, ["--api", "127.0.0.1:0", "--name", "shared"], {"TWINSHARE_IMAGES_DEFAULT": "tiny"})
    await agent.start()
    async with RESTClient(agent.url) as client:
        await client.import_image("tick", once(tick_disk()))
        await client.import_image("tiny", await tiny_disk())
    return agent


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """A node on real QEMU, with the images `tick` and `tiny`. Each test leaves no VM behind."""
    agent = trio.run(_open, tmp_path_factory.mktemp("shared") / "node")
    yield agent
    assert trio.run(agent.stop) == 0
    assert list((agent.data_dir / "vms").iterdir()) == []
