"""The entry points: setup does nothing twice, installs what is missing, and says what it may not install."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from tests.conftest import slow_files
from tests.rules.tree import TOP

SCRIPTS = [*(path for path in (TOP / "scripts").iterdir() if path.is_file() and not path.suffix), TOP / ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_bash_and_runs_from_anywhere(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert '"$(dirname "${BASH_SOURCE[0]}")/..' in text
    assert script.stat().st_mode & 0o111


@pytest.mark.skipif(not (TOP / ".venv/.ready-dev").exists(), reason="needs a .venv made by scripts/setup --dev")
def test_with_nothing_to_do_setup_takes_no_time_and_no_network() -> None:
    alone = ["unshare", "--net", "--map-root-user"] if shutil.which("unshare") else []
    subprocess.run(["scripts/setup", "--dev"], cwd=TOP, check=True)
    started = time.monotonic()
    subprocess.run([*alone, "scripts/setup", "--dev"], cwd=TOP, check=True)
    assert time.monotonic() - started < 1


@pytest.mark.skipif(not (TOP / ".venv/.ready-dev").exists(), reason="needs a .venv made by scripts/setup --dev")
def test_setup_leaves_bytecode_of_every_module() -> None:
    """An agent that must compile itself at each start needs 0.3 s of CPU more."""
    subprocess.run(["scripts/setup", "--dev"], cwd=TOP, check=True)
    modules = [path for room in ("agent", "protocols", "api") for path in (TOP / room).rglob("*.py")]
    assert modules
    assert [path for path in modules if not Path(cache_from_source(str(path))).exists()] == []


def test_what_the_quick_run_leaves_out_is_there() -> None:
    assert [path for path in slow_files() if not (TOP / path).is_file()] == []


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout with nothing but setup, on a machine that lacks one package and any fit python."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(TOP / "scripts/setup", tmp_path / "scripts")
    (tmp_path / "scripts/packages.txt").write_text(
        "# what is needed\nbash command bash\nmissing-one command no-such-command\nluxury? command nor-this\n"
    )
    for name in ("requirements.txt", "requirements-build.txt"):
        (tmp_path / name).touch()
    (tmp_path / "bin").mkdir()
    stub(tmp_path, "python3", "exit 1")
    for version in (11, 12, 13):
        stub(tmp_path, f"python3.{version}", "exit 1")
    stub(tmp_path, "apt-get", f'echo "$@" >>{tmp_path}/apt')
    stub(tmp_path, "apt-cache", "exit 1")
    return tmp_path


def stub(top: Path, name: str, body: str) -> None:
    (top / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
    (top / "bin" / name).chmod(0o755)


def setup(top: Path) -> subprocess.CompletedProcess[str]:
    path = f"{top}/bin:/usr/bin:/bin"
    environment = {"PATH": path, "PYTHON": f"{top}/bin/python3"}
    # Debian's own python is named by its path in setup, and may well be fit.
    text = (top / "scripts/setup").read_text().replace("python3.13 /usr/bin/python3;", "python3.13;")
    (top / "scripts/setup").write_text(text)
    return subprocess.run(
        ["scripts/setup"], cwd=top, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.system
def test_its_own_environment_may_come_first_on_the_path(tmp_path: Path) -> None:
    """As after the tour: the command's folder is on the path when the tests are to be set up."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(TOP / "scripts/setup", tmp_path / "scripts")
    for name in ("packages.txt", "packages-dev.txt"):
        (tmp_path / "scripts" / name).write_text("bash command bash\n")
    for name in ("requirements.txt", "requirements-build.txt", "requirements-dev.txt"):
        (tmp_path / name).touch()
    made = []
    for options in ([], ["--dev"]):
        path = f"{tmp_path}/.venv/bin:{Path(sys.base_prefix, 'bin')}:/usr/bin:/bin"
        done = subprocess.run(
            ["scripts/setup", *options], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        made.append((tmp_path / ".venv/.python").read_text())
        assert (tmp_path / ".venv/bin/python").exists()
    assert made[0] == made[1], "the environment that was there is used"


def test_whoever_may_not_install_gets_the_line(bare: Path) -> None:
    stub(bare, "id", "echo 1000")
    stub(bare, "sudo", "exit 1")
    result = setup(bare)
    assert result.returncode == 3
    [line] = [line for line in result.stderr.splitlines() if line.startswith("sudo ")]
    assert "apt-get install -y --no-install-recommends missing-one python3" in line
    assert "luxury" not in line
    assert not (bare / "apt").exists()


def test_root_gets_what_is_missing(bare: Path) -> None:
    stub(bare, "id", "echo 0")
    result = setup(bare)
    assert result.returncode == 3, "there is still no python, which the stub of apt-get did not install"
    update, install = (bare / "apt").read_text().splitlines()
    assert update.startswith("update")
    assert "--no-install-recommends" in install
    assert " missing-one python3" in install
    assert "bash" not in install.split()


def test_sudo_without_a_password_is_as_good(bare: Path) -> None:
    stub(bare, "id", "echo 1000")
    stub(bare, "sudo", f'echo "$@" >>{bare}/sudo; shift; exec "$@"')
    setup(bare)
    assert "missing-one" in (bare / "sudo").read_text()


def test_a_failure_of_apt_is_reported(bare: Path) -> None:
    stub(bare, "id", "echo 0")
    stub(bare, "apt-get", '[ "$1" = update ] || { echo "E: no such luck"; exit 100; }')
    result = setup(bare)
    assert result.returncode == 1
    assert "E: no such luck" in result.stderr
    assert ".cache/apt.log" in result.stderr


def test_a_wrong_option_is_refused() -> None:
    assert subprocess.run(["scripts/setup", "--nonsense"], cwd=TOP, capture_output=True, check=False).returncode == 2
