"""Wheel, sdist, editable install and bare checkout: each imports with its three rooms and finds its configs.

The folders stand at the top and are imported below `twinshare`; no build backend does that unasked, hence these tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.rules.tree import ROOMS, TOP

pytestmark = pytest.mark.system  # builds and installs: seconds, not milliseconds

PROBE = """
import importlib, importlib.resources, sys, tomllib
import twinshare
for room in ("protocols.services", "agent.config", "api.rest_client", "api.cli"):
    importlib.import_module(f"twinshare.{room}")
configs = importlib.resources.files("twinshare") / "configs"
assert "api" in tomllib.loads((configs / "twinshare.toml").read_text())
assert not {"agent", "api", "protocols"} & set(sys.modules), "a module has two identities"
print(twinshare.__file__, twinshare.__version__)
"""

FROM_OUTSIDE = """
from twinshare.api.rest_client import RESTClient

async def count() -> int:
    async with RESTClient("http://localhost:8080", token=None) as client:
        return len(await client.list_vms())

async def wrong() -> str:
    return await count()
"""


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, f"{command[:4]}:\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what git ignores."""
    copy = tmp_path_factory.mktemp("source") / "twinshare"
    ignored = shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__", ".*_cache", ".hypothesis", "dist")
    shutil.copytree(TOP, copy, symlinks=True, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def artefacts(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from that sdist, as a release makes them."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    return out


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The python of an empty environment that borrows our dependencies (but not our checkout) through a path file."""
    venv.create(tmp_path / "env", symlinks=True)
    [site] = (tmp_path / "env/lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return tmp_path / "env/bin/python"


def install(python: Path, *what: str | Path) -> None:
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    run(python, "-m", "pip", "install", "-q", *offline, *what, cwd=python.parents[1])


def only(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


def sources_of(top: Path) -> set[str]:
    return {path.relative_to(top).as_posix() for room in ROOMS for path in (top / room).rglob("*.py")}


def test_the_wheel_holds_the_package_and_nothing_else(artefacts: Path, source: Path) -> None:
    with zipfile.ZipFile(only(artefacts, "*.whl")) as wheel:
        names = set(wheel.namelist())
        info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
        metadata = wheel.read(f"{info}/METADATA").decode()
    assert {name.partition("/")[0] for name in names} == {"twinshare", info}
    assert {f"twinshare/{path}" for path in sources_of(source)} <= names
    assert {f"twinshare/configs/{path.name}" for path in (source / "configs").iterdir()} <= names
    assert "twinshare/py.typed" in names
    assert not [name for name in names if "/tests/" in name or "__pycache__" in name]
    assert "twinshare = twinshare.api.cli:main" in entry_points
    assert "\nName: twinshare-agent\n" in metadata


def test_the_sdist_holds_what_builds_and_tests_it(artefacts: Path, source: Path) -> None:
    with tarfile.open(only(artefacts, "*.tar.gz")) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert sources_of(source) <= names
    assert {"pyproject.toml", "LICENSE", "README.md", "configs/twinshare.toml", "tests/conftest.py"} <= names


def test_the_wheel_works(artefacts: Path, environment: Path, tmp_path: Path) -> None:
    install(environment, only(artefacts, "*.whl"))
    assert str(tmp_path / "env/lib") in run(environment, "-c", PROBE, cwd=tmp_path)
    assert "Usage" in run(environment.with_name("twinshare"), "--help", cwd=tmp_path)


def test_the_sdist_works(artefacts: Path, environment: Path, tmp_path: Path) -> None:
    install(environment, only(artefacts, "*.tar.gz"))
    assert str(tmp_path / "env/lib") in run(environment, "-c", PROBE, cwd=tmp_path)


def test_an_editable_install_works_and_sees_new_files(source: Path, environment: Path, tmp_path: Path) -> None:
    install(environment, "-e", source)
    assert str(source) in run(environment, "-c", PROBE, cwd=tmp_path)
    fresh = source / "agent/fresh.py"
    fresh.write_text('"""New."""\n')
    try:
        run(environment, "-c", "import twinshare.agent.fresh", cwd=tmp_path)
    finally:
        fresh.unlink()


def test_a_bare_checkout_works(source: Path, environment: Path) -> None:
    assert str(source) in run(environment, "-c", PROBE, cwd=source)
    assert "Usage" in run(environment, "-m", "twinshare", "--help", cwd=source)


def test_a_user_of_the_wheel_sees_our_types(artefacts: Path, environment: Path, tmp_path: Path) -> None:
    install(environment, only(artefacts, "*.whl"))
    (tmp_path / "theirs.py").write_text(FROM_OUTSIDE)
    # A folder of the user's own by the name of one of our rooms must not matter.
    (tmp_path / "api").mkdir()
    (tmp_path / "api/__init__.py").write_text("raise ImportError('not this one')\n")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", environment, "theirs.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert checked.stdout.count(" error: ") == 1, checked.stdout + checked.stderr
    assert 'Incompatible return value type (got "int", expected "str")' in checked.stdout
    run(environment, "-c", "import theirs", cwd=tmp_path)
