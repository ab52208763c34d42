"""A real agent in an environment that is not its own: a foreign umask and none of the usual variables, a proxy."""

import os
import stat
import sys
from pathlib import Path

import pytest
import trio

from tests.guest.disks import tick_disk
from tests.images.registry.proxy_server import open_proxy
from tests.images.registry.servers import docker_registry, needs_registry
from twinshare.agent.testing import AgentProcess, open_agent
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.image import PullRequest, PushRequest

from .conftest import once

pytestmark = pytest.mark.system

FOREIGN = ["/bin/sh", "-c", 'umask 077; exec env -i TWINSHARE_P2P_ENABLED=false LANG=tr_TR.ISO-8859-9 "$@"', "sh"]


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


async def test_a_guest_runs_though_the_agent_was_started_with_umask_077_and_no_environment(tmp_path: Path) -> None:
    program = [*FOREIGN, sys.executable, "-m", "twinshare", "agent"]
    agent = AgentProcess(tmp_path / "node", ["--api", "127.0.0.1:0"], {}, program)
    await agent.start()
    try:
        async with RESTClient(agent.url) as client:
            image = await client.import_image("tick", once(tick_disk()))
            vm = await client.create_vm("one", "tick", memory=64, disk_size=1, start=True)
            with trio.fail_after(30):
                while not (await client.vms().vm_log("one")).text:
                    await trio.sleep(0.1)
            await client.images().capture_image("one", "copy")
        home = agent.data_dir
        secret = {"identity.key", "admin.token", "twinshare.db", "lock"}
        assert {modes(home)[name] for name in secret} == {0o600}
        assert modes(home)["agent.json"] == 0o644
        if os.getuid() == 0:  # QEMU runs as another user
            base = home / "images" / "raw" / f"{image.digest.partition(':')[2]}.raw"
            assert base.stat().st_mode & 0o444
            assert (home / "vms" / vm.id).stat().st_uid == (home / "vms" / vm.id / "disk.qcow2").stat().st_uid != 0
            assert modes(home / "vms")[vm.id] == 0o700
    finally:
        async with RESTClient(agent.url) as client:
            await client.delete_vm("one", force=True)
        assert await agent.stop() == 0


@needs_registry
async def test_an_image_of_a_registry_comes_by_the_proxy_of_the_environment(tmp_path: Path) -> None:
    async with (
        docker_registry(tmp_path / "registry", tls=True) as registry,
        open_proxy(int(registry.host.rpartition(":")[2])) as proxy,
    ):
        config = tmp_path / "twinshare.toml"
        config.write_text(f'[[images.registries]]\nhost = "registry.test"\nca_file = "{registry.ca_file}"\n')
        options = ["--config", str(config), "--hypervisor", "fake://"]
        environment = {"HTTPS_PROXY": proxy.url, "NO_PROXY": "localhost"}
        async with (
            open_agent(tmp_path / "node", *options, environment=environment) as agent,
            RESTClient(agent.url) as client,
        ):
            image = await client.import_image("tick", once(tick_disk()))
            images = client.images()
            await images.push_image(PushRequest(image="tick", target="registry.test/org/tick:1"))
            await images.remove_image("tick")
            got = await images.pull_image(PullRequest(image="registry.test/org/tick:1"))
            assert got.digest == image.digest
        assert set(proxy.asked) == {"registry.test:443"}
