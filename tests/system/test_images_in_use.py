"""Images that others made boot here, and no image is taken from under a guest: real registry, real QEMU."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.guest.disks import tick_disk
from tests.images.registry.servers import Settings, docker_registry, needs_registry, no_pause
from tests.images.registry.test_exchange import TAR, container_layer, meda_parts, publish
from tests.images.test_store import as_qcow2
from tests.system.conftest import once
from tests.system.test_survival import ticks, until_tick
from twinshare.agent.images.contract_samples import with_boot_sector
from twinshare.agent.images.registry.client import Repository, open_registry_client
from twinshare.agent.testing import AgentProcess, open_agent
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.errors import ImageInUse
from twinshare.protocols.image import PullRequest

pytestmark = pytest.mark.system


@asynccontextmanager
async def beside_a_registry(folder: Path) -> AsyncIterator[tuple[AgentProcess, Settings]]:
    async with docker_registry(folder / "registry") as registry:
        config = folder / "twinshare.toml"
        config.write_text(f'[[images.registries]]\nhost = "{registry.host}"\ninsecure = true\n')
        async with open_agent(folder / "node", "--config", str(config)) as agent:
            yield agent, registry


@needs_registry
async def test_images_of_meda_and_of_kubevirt_boot(tmp_path: Path) -> None:
    container = container_layer(as_qcow2(tick_disk(), tmp_path))
    others: dict[str, list[tuple[str, bytes, dict[str, str]]]] = {
        "meda": meda_parts(tick_disk(), 1 << 18),
        "kubevirt": [(f"{TAR}+gzip", container, {})],
    }
    async with beside_a_registry(tmp_path) as (agent, registry):
        async with open_registry_client([registry], no_pause) as writer:
            for name, parts in others.items():
                await publish(writer, Repository(registry.host, f"org/{name}"), *parts)
        async with RESTClient(agent.url) as client:
            for name in others:
                image = f"{registry.host}/org/{name}:latest"
                await client.images().pull_image(PullRequest(image=image))
                await client.create_vm(name, image, memory=64, disk_size=1, cpu_cores=1, start=True)
                await until_tick(client, name, 3)
                await client.delete_vm(name, force=True)


async def test_no_image_is_taken_from_under_a_guest(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "node") as agent, RESTClient(agent.url) as client:
        images = client.images()
        await client.import_image("tick", once(tick_disk()))
        await client.import_image("idle", once(with_boot_sector(tick_disk()[::-1])))
        await client.create_vm("counts", "tick", memory=64, disk_size=1, cpu_cores=1, start=True)
        base = base_of(agent, (await images.get_image("tick")).digest)
        before = hashlib.sha256(base.read_bytes()).hexdigest()
        await until_tick(client, "counts", 3)
        with pytest.raises(ImageInUse) as refused:
            await images.remove_image("tick")
        assert refused.value.details["vms"] == ["counts"]
        planned = await images.prune_images(all=True, dry_run=True)
        assert ([image.name for image in planned.images], planned.dry_run) == (["idle"], True)
        assert {image.name for image in await images.list_images()} == {"idle", "tick"}
        pruned = await images.prune_images(all=True)
        assert (pruned.images, pruned.freed) == (planned.images, planned.freed)
        assert [image.name for image in await images.list_images()] == ["tick"]
        seen = len(await ticks(client, "counts"))
        await until_tick(client, "counts", seen + 3)
        counted = await ticks(client, "counts")
        assert counted == list(range(counted[0], counted[0] + len(counted))), "it went on, and never began again"
        assert hashlib.sha256(base.read_bytes()).hexdigest() == before
        await client.delete_vm("counts", force=True)


def base_of(agent: AgentProcess, digest: str) -> Path:
    [path] = (agent.data_dir / "images").rglob(f"{digest.partition(':')[2]}.raw")
    return path
