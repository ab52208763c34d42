"""`twinshare doctor` on machines that lack things."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from twinshare.agent.config import ApiConfig, Config, HypervisorConfig
from twinshare.api.cli import checks, main
from twinshare.api.cli.checks import Check, State, check_machine


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
