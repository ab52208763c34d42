"""The shell and the files of guests in a real browser, here and at a peer, with names that are not to be trusted."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from pathlib import Path

import pytest
import trio

from tests.api.browser import PROGRAM, Page
from tests.api.test_browser import at_peace
from tests.api.test_page import Opened, has, opened
from tests.api.test_page_strings import MARKUP

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROGRAM is None, reason="no browser: install chromium-headless-shell"),
]

GUESTS = "?guest_program=1"
SCREEN = "(document.querySelector('.xterm-rows')?.innerText ?? '').replaceAll('\\u00a0', ' ')"


def says(words: str) -> str:
    return f"{SCREEN}.includes({json.dumps(words)})"


async def type_line(page: Page, words: str) -> None:
    await page.run("document.querySelector('.xterm-helper-textarea').focus()")
    await page.command("Input.insertText", text=words)
    await page.command("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")
    await page.command("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter")


async def run(at: Opened, vm: str, command: str) -> None:
    """Start a command by the page's form, and see its terminal."""
    await at.go(f"{vm}/shell", "document.querySelector('#run')")
    await at.page.fill("#run [name=command]", command)
    await at.page.click("#run button.primary", "document.querySelector('.xterm-rows')")


async def test_a_shell_in_a_guest_of_a_peer_goes_on_without_the_page(tmp_path: Path) -> None:
    async with opened(tmp_path, GUESTS) as at:
        page, vm = at.page, f"#/vm/far/{at.ids['cache']}"
        await run(at, vm, 'stty -echo; echo ready; while read line; do echo "<$line>"; stty size; done')
        await page.until(says("ready"))
        await type_line(page, "one")
        await page.until(says("<one>"))
        wide = int(await page.run(f"/<one>\\s+\\d+ (\\d+)/.exec({SCREEN})[1]"))
        await page.shape(700, 700)
        await page.until("document.querySelector('.serial').clientWidth < 700")
        await trio.sleep(0.2)
        await type_line(page, "two")
        await page.until(f"/<two>\\s+\\d+ (\\d+)/.test({SCREEN})")
        assert int(await page.run(f"/<two>\\s+\\d+ (\\d+)/.exec({SCREEN})[1]")) < wide
        # The page is closed and opened: the session has gone on, and shows all that it has written.
        address = await page.run("location.hash")
        await page.open("about:blank")
        await page.open(f"{at.api.url}/{address}")
        await page.until(f"{says('<one>')} && {says('<two>')}")
        await type_line(page, "three")
        await page.until(says("<three>"))

        await at.go(f"{vm}/shell", "document.querySelector('#guest-sessions tbody tr')")
        await page.click(
            "[data-operation=signal_session]", "document.querySelector('#guest-sessions').innerText.includes('INT')"
        )
        await page.click("#guest-sessions [data-operation=end_vm_session]", has("No command runs in this guest."))
        at_peace(page, at.api)


async def test_a_session_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    async with opened(tmp_path, GUESTS) as at:
        vm = f"#/vm/here/{at.ids['web-1']}"
        await run(at, vm, "echo done; exit 3")
        await at.page.until(f"{has('exit code 3')} && {says('done')}")
        await at.page.click("[data-operation=end_vm_session]", has("No command runs in this guest."))
        await at.go(f"{vm}/shell/{'0' * 16}", has("has no session"))


async def choose(page: Page, selector: str, *files: Path) -> None:
    """Choose files in a field, as by the browser's own dialog."""
    document = await page.command("DOM.getDocument")
    found = await page.command("DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector)
    await page.command("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(file) for file in files])


def row(name: str) -> str:
    return f"[...document.querySelectorAll('#files tbody tr')].find(row => row.innerText.includes({json.dumps(name)}))"


@pytest.mark.parametrize("node", ["here", "far"])
async def test_files_go_in_and_out_whatever_they_are_called(node: str, tmp_path: Path) -> None:
    there, mine = tmp_path / "guest files", tmp_path / "mine"
    there.mkdir()
    mine.mkdir()
    hostile = {MARKUP.replace("/", "_"): b"markup", "ordre\u202etxt.exe": b"bidi", "a\nb": b"line"}
    for name, content in hostile.items():
        (there / name).write_bytes(content)
    (there / os.fsdecode(b"\xff\xfe")).write_bytes(b"not UTF-8")
    (mine / "up load.bin").write_bytes(os.urandom(300_000))
    async with opened(tmp_path / "fleet", GUESTS) as at:
        page, vm = at.page, f"#/vm/{node}/{at.ids['web-1' if node == 'here' else 'cache']}"
        folder = str(there).replace("/", "%2F").replace(" ", "%20")
        await at.go(f"{vm}/files/{folder}", "document.querySelectorAll('#files tbody tr').length === 4")
        text = await page.run("document.querySelector('#files').innerText")
        assert "<img src=" in text
        assert "ordre\\u{202e}txt.exe" in text
        assert "a\\u{a}b" in text
        assert await page.run("document.querySelectorAll('#hurt, main script').length") == 0
        # Each is read by its link, byte for byte.
        read = "fetch({}.querySelector('a[data-operation]').href).then(answer => answer.text())"
        for name, content in {"<img": b"markup", "202e": b"bidi", "u{a}": b"line", "\ufffd": b"not UTF-8"}.items():
            assert await page.run(read.format(row(name))) == content.decode()

        await choose(page, ".drop input", mine / "up load.bin")
        await page.until(row("up load.bin"))
        assert (there / "up load.bin").read_bytes() == (mine / "up load.bin").read_bytes()
        await page.fill("#folder [name=name]", "new folder")
        await page.click("#folder button", row("new folder"))
        assert (there / "new folder").is_dir()
        (there / "new folder" / "in it").write_bytes(b"")
        await page.run(f"{row('new folder')}.querySelector('th a').click()")
        await page.until(row("in it"))
        await page.click(".way a:nth-last-child(2)", row("new folder"))
        for name in ("new folder", "\ufffd"):
            await page.run(f"{row(name)}.querySelector('button').click()")
            await page.click("[data-answer=yes]", f"!document.querySelector('dialog') && !({row(name)})")
        assert sorted(file.name for file in there.iterdir()) == sorted([*hostile, "up load.bin"])
        await at.go(f"{vm}/files/{b64('/nowhere')}", has("nowhere"))
        await at.go(f"{vm}/files", row("tmp"))
        assert not any(url.endswith("/web/none") for url in page.requests)


def b64(path: str) -> str:
    return "base64:" + b64encode(path.encode()).decode().replace("=", "%3D")
