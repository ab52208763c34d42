"""What makes clients out of the OpenAPI documents; it is fetched once, into .cache/, with all that is made by it.

A test that needs one skips, naming what is missing, where its tool chain or the package registry cannot be had.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

PROGRAMS = Path(__file__).parent / "programs"
CACHE = Path(__file__).parents[2] / ".cache" / "clients"
BUILD_TIME = 600.0
GENERATOR = "openapi-generator-cli==7.26.0"
OAPI_CODEGEN = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"
CLIENT_NEEDS = ("pydantic>=2.11", "urllib3>=2.7", "python-dateutil>=2.8.2", "typing-extensions>=4.7.1")

Documents = Mapping[str, bytes]
"""The documents by the name of their dialect."""


def need(*programs: str) -> None:
    """Skip the test where one of the programs is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> None:
    """Run what fetches from a registry; the test is skipped, naming it, where that fails."""
    try:
        made(command, folder, **environment)
    except AssertionError as error:
        pytest.skip(f"{error}; is there a package registry?")


def made(command: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """Run what must succeed and return what it prints. Raises: AssertionError with what it says of its failure."""
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=os.environ | environment, timeout=BUILD_TIME,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(map(str, command[:3]))} failed: {done.stdout[-3000:]}"
    return done.stdout


def built(name: str, contents: Sequence[bytes], build: Callable[[Path], None]) -> Path:
    """A folder of the cache that `build` has filled; other contents are another folder."""
    digest = hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]
    folder = CACHE / f"{name}-{digest}"
    if not folder.exists():
        scratch = CACHE / f".{name}-{digest}-{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            build(scratch)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def node_tools() -> Path:
    """Where the programs of package.json are."""
    need("node", "npm")
    package = PROGRAMS / "package.json"

    def build(folder: Path) -> None:
        shutil.copy(package, folder)
        run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"], folder)

    return built("node", [package.read_bytes()], build)


def python_tools() -> Path:
    """A virtual environment with openapi-generator and what its Python clients need."""
    need("java")

    def build(folder: Path) -> None:
        run([sys.executable, "-m", "venv", "--without-pip", "venv"], folder)
        target = next((folder / "venv" / "lib").iterdir()) / "site-packages"
        run([sys.executable, "-m", "pip", "install", "-q", "--target", target, GENERATOR, *CLIENT_NEEDS], folder)

    return built("python", [GENERATOR.encode(), *map(str.encode, CLIENT_NEEDS)], build) / "venv"


def oapi_codegen() -> Path:
    """The program oapi-codegen."""
    need("go")

    def build(folder: Path) -> None:
        run(["go", "install", OAPI_CODEGEN], folder, GOBIN=str(folder))

    return built("oapi-codegen", [OAPI_CODEGEN.encode()], build) / "oapi-codegen"


def generated(documents: Documents) -> Path:
    """Clients of each document by openapi-generator: `twinshare-go`, `meda-python`, …"""
    venv = python_tools()
    jar = next(venv.glob("lib/*/site-packages/openapi_generator_cli/openapi-generator.jar"))

    def build(folder: Path) -> None:
        for name, document in documents.items():
            (folder / f"{name}.json").write_bytes(document)
            for generator in ("go", "python", "typescript-fetch"):
                package = {"go": f"{name}gen", "python": f"{name}_client"}.get(generator)
                settings = {
                    "generatorName": generator, "inputSpec": str(folder / f"{name}.json"),
                    "outputDir": str(folder / f"{name}-{generator}"),
                    "additionalProperties": {"packageName": package} if package else {},
                }  # fmt: skip
                (folder / f"{name}-{generator}.config.json").write_bytes(msgspec.json.encode(settings))
        made(["java", "-jar", jar, "batch", "--fail-fast", *sorted(folder.glob("*.config.json"))], folder)

    return built("generated", [GENERATOR.encode(), *documents.values()], build)
