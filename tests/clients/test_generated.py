"""Clients that generators make of both documents: they compile, and they work with a node."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from tests.api.served import Served, served
from tests.clients import tools

pytestmark = pytest.mark.system

QUIET = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
ROOTS = {"twinshare": "/api", "meda": "/api/v1"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path / "node") as api:
        yield api


@pytest.fixture
async def documents(api: Served) -> tools.Documents:
    """Both documents as the node serves them."""
    return {name: msgspec.json.encode(await api.get(f"{root}/openapi.json")) for name, root in ROOTS.items()}


async def use(command: list[str | Path], folder: Path, api: Served) -> None:
    """Run a program with the address of the node."""
    done = await trio.run_process(
        [*command, api.url], cwd=folder, check=False, capture_stdout=True, capture_stderr=True
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


async def test_redocly_finds_nothing(documents: tools.Documents, tmp_path: Path) -> None:
    redocly = tools.node_tools() / "node_modules" / ".bin" / "redocly"
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_bytes(document)
        lint = partial(tools.made, [redocly, "lint", "--format=json", f"{name}.json"], tmp_path, **QUIET)
        said = await trio.to_thread.run_sync(lint)
        problems = msgspec.json.decode(said[said.index("{") : said.rindex("}") + 1])["problems"]
        assert problems == []


async def test_python(documents: tools.Documents, api: Served, tmp_path: Path) -> None:
    clients = await trio.to_thread.run_sync(tools.generated, documents)
    for name in ROOTS:
        shutil.copytree(clients / f"{name}-python" / f"{name}_client", tmp_path / f"{name}_client")
    shutil.copy(tools.PROGRAMS / "use.py", tmp_path)
    await use([tools.python_tools() / "bin" / Path(sys.executable).name, "-W", "error", "use.py"], tmp_path, api)


async def test_typescript(documents: tools.Documents, api: Served) -> None:
    programs, clients = tools.node_tools(), await trio.to_thread.run_sync(tools.generated, documents)
    sources = [tools.PROGRAMS / "tsconfig.json", tools.PROGRAMS / "use.ts"]

    def build(folder: Path) -> None:
        (folder / "node_modules").symlink_to(programs / "node_modules")
        for source in sources:
            shutil.copy(source, folder)
        for name in ROOTS:
            shutil.copytree(clients / f"{name}-typescript-fetch", folder / f"{name}-fetch")
            tools.made(
                ["node_modules/.bin/openapi-typescript", clients / f"{name}.json", "-o", f"{name}-types.ts"], folder
            )
        tools.made(["node_modules/.bin/tsc"], folder)

    contents = [*documents.values(), *(source.read_bytes() for source in sources)]
    folder = await trio.to_thread.run_sync(tools.built, "typescript", contents, build)
    await use(["node", "built/use.js"], folder, api)


async def test_go(documents: tools.Documents, api: Served) -> None:
    oapi_codegen, clients = tools.oapi_codegen(), await trio.to_thread.run_sync(tools.generated, documents)
    sources = [tools.PROGRAMS / "go.mod", tools.PROGRAMS / "use.go"]

    def build(folder: Path) -> None:
        for source in sources:
            shutil.copy(source, folder)
        for name in ROOTS:
            shutil.copytree(
                clients / f"{name}-go", folder / f"{name}gen", ignore=shutil.ignore_patterns("go.*", "test")
            )
            (folder / f"{name}oapi").mkdir()
            target = ["-package", f"{name}oapi", "-o", f"{name}oapi/client.go"]
            tools.made([oapi_codegen, "-generate", "types,client", *target, clients / f"{name}.json"], folder)
        tools.run(["go", "mod", "tidy"], folder)
        tools.made(["go", "vet", "./..."], folder)
        tools.made(["go", "build", "-trimpath", "-o", "use", "."], folder)

    contents = [*documents.values(), *(source.read_bytes() for source in sources)]
    folder = await trio.to_thread.run_sync(tools.built, "go", contents, build)
    await use(["./use"], folder, api)
