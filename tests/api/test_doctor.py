"""`twinshare doctor` on machines that lack things."""

import json
import os
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from twinshare.agent.config import ApiConfig, Config, HypervisorConfig
from twinshare.agent.testing import open_agent
from twinshare.api.cli import checks, main
from twinshare.api.cli.checks import Check, State, check_machine
from twinshare.api.cli.orphans import LIBVIRT, find_orphans


def found(config: Config, data_dir: Path) -> dict[str, Check]:
    return {check.name: check for check in check_machine(config, data_dir)}


def doctor(data_dir: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *options], env={"TWINSHARE_DATA_DIR": str(data_dir)})


def test_a_machine_without_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_PATH", str(tmp_path))
    result = doctor(tmp_path)
    assert result.exit_code == 3
    assert "missing  QEMU: not installed" in result.stdout
    assert "apt-get install" in result.stderr
    assert "qemu-system" in result.stderr
    document = json.loads(doctor(tmp_path, "--json").stdout)
    assert {"name", "state", "found", "cure", "package"} == set(document[0])


def test_another_hypervisor_is_not_looked_into(tmp_path: Path) -> None:
    names = found(Config(hypervisor=HypervisorConfig(uri="qemu:///system")), tmp_path)
    assert "QEMU" not in names
    assert names["hypervisor"].state is State.NOTE


def test_no_room(tmp_path: Path) -> None:
    check = found(Config(hypervisor=HypervisorConfig(uri="fake://", reserve_disk=10**6)), tmp_path)["room"]
    assert (check.state, "reserve_disk" in check.cure) == (State.BROKEN, True)


def test_emulation_may_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "cpu_can_virtualize", lambda: False)
    for allowed, state in ((True, State.NOTE), (False, State.BROKEN)):
        config = Config(hypervisor=HypervisorConfig(allow_emulation=allowed))
        assert found(config, tmp_path)["acceleration"].state is state


def test_secrets_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "identity.key").touch(0o644)
    (tmp_path / "admin.token").touch(0o600)
    names = found(Config(), tmp_path)
    assert names["identity.key"].state is State.UNSAFE
    assert names["identity.key"].cure == f"chmod 600 {tmp_path}/identity.key"
    assert "admin.token" not in names


@pytest.mark.parametrize(
    ("api", "state"),
    [
        (ApiConfig(), State.OK),
        (ApiConfig(listen="[::1]:0"), State.OK),
        (ApiConfig(listen="unix:/run/x"), State.OK),
        (ApiConfig(listen="0.0.0.0:80"), State.BROKEN),
        (ApiConfig(listen="0.0.0.0:80", insecure=True), State.UNSAFE),
        (ApiConfig(listen="0.0.0.0:80", tls_cert="c", tls_key="k"), State.OK),
    ],
)
def test_what_the_api_is_open_to(api: ApiConfig, state: State, tmp_path: Path) -> None:
    assert found(Config(api=api), tmp_path)["api"].state is state


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_of_somebody_else() -> None:
    assert found(Config(), Path("/proc/nowhere"))["data directory"].state is State.BROKEN


def test_what_belongs_to_nothing_is_listed_with_what_removes_it(tmp_path: Path) -> None:
    kept, lost, used = (tmp_path / "vms" / name for name in ("kept", "lost", "used"))
    for directory in (kept, lost, used, tmp_path / "images" / "partial", tmp_path / LIBVIRT):
        directory.mkdir(parents=True)
    (kept / "disk.qcow2").write_bytes(bytes(3 << 20))
    (kept / "kept.json").write_text('{"vm": {"name": "web"}, "digest": "blake3:00"}')
    for id in ("used", "foreign"):
        (tmp_path / LIBVIRT / f"{id}.xml").write_text(f"<domain><name>{id}-name</name><uuid>{id}</uuid></domain>")
    (tmp_path / LIBVIRT / "broken.xml").write_text("<domain>")
    new, old = (tmp_path / "images" / "partial" / f"{name}.pull" for name in ("new", "old"))
    for download in (new, old):
        download.touch()
    os.utime(old, (1, 1))
    (tmp_path / "twinshare.db.damaged-20260101T000000Z").touch()
    found = {check.cure: check.found for check in find_orphans(tmp_path, {"used"})}
    removed = {cure.removeprefix(f"rm -r {tmp_path}/"): text for cure, text in found.items() if cure.startswith("rm")}
    assert list(removed) == ["vms/kept", "vms/lost", "images/partial/old.pull", "twinshare.db.damaged-20260101T000000Z"]
    assert "the kept disk of the deleted VM 'web' (3.0 MiB)" in removed["vms/kept"]
    (domain,) = found.keys() - {f"rm -r {tmp_path}/{name}" for name in removed}
    assert domain.endswith(f"socket={tmp_path}/hypervisor/r/libvirt/libvirt-sock' undefine foreign")
    assert all(path.exists() for path in (kept, lost, old))


async def test_a_running_nodes_orphans_are_found(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "node", "--hypervisor", "fake://") as agent:
        (agent.data_dir / "vms" / "lost").mkdir()
        result = await trio.to_thread.run_sync(doctor, agent.data_dir)
    assert "files of a VM that the node does not have" in result.stdout
    assert f"-> rm -r {agent.data_dir}/vms/lost" in result.stdout
