"""The pages: there for browsers, whole without a network, and unchanged since they were vendored."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.served import served

WEB = Path(__file__).parents[2] / "api" / "web"
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_browsers_get_the_page_and_programs_json(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        page = await api.client.get("/", headers=BROWSER)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "<title>twinshare</title>" in page.text
        assert (await api.get("/"))["name"] == "AI Environment Manager API"
        assert (await api.get("/", headers={"accept": "application/json"}))["endpoints"]


@pytest.mark.parametrize("page", ["/", "/swagger-ui"])
async def test_what_a_page_refers_to_is_there_and_ours(page: str, tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        html = (await api.client.get(page, headers=BROWSER)).text
        found = re.findall(r'(?:src|href)="([^"]*)"', html)
        assert found
        for target in found:
            assert target.startswith("/"), target
            assert (await api.client.get(target)).status_code == 200, target
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", html), "the policy allows nothing inline"


async def test_files_have_their_types(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        for name, kind in {"main.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}.items():
            assert (await api.client.get(f"/web/{name}")).headers["content-type"].startswith(kind)
        assert (await api.client.head("/web/main.js")).content == b""


def test_our_own_scripts_load_nothing_from_elsewhere() -> None:
    for file in (*WEB.glob("*.js"), *WEB.glob("*.css"), *WEB.glob("*.html")):
        assert not re.search(r"https?://|@import|eval\(|innerHTML", file.read_text()), file.name


VENDORED = [*sorted((WEB / "vendor").iterdir()), *sorted((Path(__file__).parents[1] / "vendor").iterdir())]


@pytest.mark.parametrize("folder", VENDORED, ids=lambda folder: str(folder.name))
def test_vendored_files_are_what_they_were(folder: Path) -> None:
    sums = (folder / "SHA256SUMS").read_text().split()
    kept = dict(zip(sums[1::2], sums[::2], strict=True))
    there = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    assert kept.keys() | {"SHA256SUMS", "README.md"} == there.keys()
    assert any(name.startswith("LICENSE") for name in kept)
    for name, digest in kept.items():
        assert hashlib.sha256(there[name].read_bytes()).hexdigest() == digest, name


FIRST_VIEW = 60_000
"""Bytes that the first view takes, compressed."""


async def test_the_first_view_is_small_and_compressed(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        found, left = {}, ["/", *re.findall(r'(?:src|href)="([^"]*)"', (WEB / "index.html").read_text())]
        while left:
            if (path := left.pop()) in found:
                continue
            async with api.client.stream("GET", path, headers=BROWSER | {"accept-encoding": "gzip"}) as answer:
                assert answer.headers.get("content-encoding") == ("gzip" if path != "/web/icon.svg" else None), path
                found[path] = sum([len(part) async for part in answer.aiter_raw()])
            name = "index.html" if path == "/" else path.removeprefix("/web/")
            imported = re.findall(r'^(?:import|export) .*from "\./(.*)";$', (WEB / name).read_text(), re.MULTILINE)
            left += [f"/web/{one}" for one in imported]
        assert sum(found.values()) < FIRST_VIEW, found
        plain = await api.client.get("/web/main.js", headers={"accept-encoding": "identity"})
        assert plain.headers.get("content-encoding") is None
        assert plain.text == (WEB / "main.js").read_text()


def test_what_a_server_that_nobody_looks_at_does_not_load() -> None:
    assert loaded("twinshare.api.server", ("prometheus_client", "httpx", "libp2p", "joserfc")) == "[]"


def test_the_command_line_does_not_load_the_server() -> None:
    assert loaded("twinshare.api.cli", ("quart", "hypercorn", "prometheus_client", "libp2p")) == "[]"


def loaded(module: str, names: tuple[str, ...]) -> str:
    """Which of the modules `names` an interpreter has after it has imported `module`."""
    code = f"import sys, {module}; print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
