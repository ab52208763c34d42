"""The page of one node, in a real browser, runs a fleet of three real processes, one of them with real guests.

As somebody would: a VM on another node, its terminal, screen, shell, files and a port; images by way of a registry; a
node that is invited, is killed and is revoked.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import pytest
import trio

from tests.api.browser import PROGRAM, Page, open_page
from tests.api.test_browser import row
from tests.api.test_cli_qr import read
from tests.api.test_page import LIVE, MODULES, WIDE, has
from tests.api.test_page_guest import choose, says, type_line
from tests.guest.disks import tiny_disk
from tests.images.registry.servers import REGISTRY, docker_registry
from tests.nodes.fleet import ask, join, start, until_online
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROGRAM is None, reason="no browser: install chromium-headless-shell"),
    pytest.mark.skipif(shutil.which(REGISTRY) is None, reason=f"{REGISTRY} is not installed"),
]

# How many dots of the screen are lit, and how large it is.
LIT = """(() => {
  const canvas = document.querySelector('.screen canvas');
  const seen = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
  seen.drawImage(canvas, 0, 0);
  const dots = seen.getImageData(0, 0, canvas.width, canvas.height).data;
  let lit = 0;
  for (let at = 0; at < dots.length; at += 4) lit += dots[at] + dots[at + 1] + dots[at + 2] > 200;
  return lit;
})()"""
# The milliseconds from opening a websocket to the first bytes of the first frame (RFC 6143, security type None).
FIRST_FRAME = """(path => new Promise((done, failed) => {
  const begun = performance.now(), socket = new WebSocket(location.origin.replace("http", "ws") + path);
  let held = [], size = null;
  const steps = [
    () => held.length >= 12 && (socket.send(Uint8Array.from(held.splice(0, 12))), true),
    () => held.length > held[0] && (held.splice(0, held[0] + 1), socket.send(Uint8Array.of(1)), true),
    () => held.length >= 4 && (held.splice(0, 4), socket.send(Uint8Array.of(1)), true),
    () => held.length >= 24 && (size = held.slice(0, 4), held = [], true),
    () => (socket.send(Uint8Array.of(3, 0, 0, 0, 0, 0, ...size)), true),
    () => held.length >= 16 && (socket.close(), done(performance.now() - begun), true),
  ];
  socket.binaryType = "arraybuffer";
  socket.onerror = failed;
  socket.onmessage = ({data}) => {
    held.push(...new Uint8Array(data).slice(0, 65536));
    while (steps.length && steps[0]()) steps.shift();
  };
}))"""
# Every progress that the drawer shows, also between two looks of the test.
WATCH = """void new MutationObserver(() => {
  for (const bar of document.querySelectorAll('#activity [role=progressbar]')) {
    if (bar.ariaValueNow !== null) (window.progress ??= new Set()).add(bar.ariaValueNow);
  }
}).observe(document, {childList: true, subtree: true, attributes: true})"""


@dataclass(frozen=True)
class Lab:
    """The page of `near`; `far` runs real guests; `other` is no member yet. The registry `silent` never answers."""

    near: AgentProcess
    far: AgentProcess
    other: AgentProcess
    page: Page
    registry: str
    silent: str

    async def go(self, address: str, then: str) -> None:
        await self.page.run(f"void (location.hash = {json.dumps(address)})")
        await self.page.until(then)


@asynccontextmanager
async def lab(folder: Path) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(docker_registry(folder / "registry"))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        silent = f"127.0.0.1:{listener.getsockname()[1]}"
        config = folder / "twinshare.toml"
        config.write_text(
            "".join(f'[[images.registries]]\nhost = "{host}"\ninsecure = true\n' for host in (registry.host, silent))
        )

        async def node(name: str, hypervisor: str | None) -> AgentProcess:
            made = await start(folder / name, "--config", str(config), hypervisor=hypervisor)
            stack.push_async_callback(made.stop)
            return made

        near, far, other = await node("near", "fake://"), await node("far", None), await node("other", "fake://")
        await join(far, near)
        await until_online(near, "far")
        async with RESTClient(far.url) as client:
            await client.import_image("tiny", await tiny_disk())
        page = await stack.enter_async_context(open_page(folder / "browser"))
        await page.shape(*WIDE)
        await page.open(near.url + "/")
        await page.until(LIVE)
        yield Lab(near, far, other, page, registry.host, silent)


async def test_a_fleet_is_run_from_the_page(tmp_path: Path) -> None:
    began = trio.current_time()
    async with lab(tmp_path) as at:
        for part in (
            create,
            invite,
            pull_with_progress,
            cancel,
            terminal,
            screen,
            first_frame,
            files,
            forward,
            kill,
            delete,
        ):
            await part(at, tmp_path)
            print(f"{part.__name__}: {trio.current_time() - began:.1f} s")
        wrong = [one for one in at.page.complaints if "Failed to load resource" not in one]
        assert wrong == [], "only requests for the killed node may have failed"
        elsewhere = [url for url in at.page.requests if not url.startswith((at.near.url, "data:", "blob:"))]
        assert elsewhere == []


async def vm_page(at: Lab, tab: str) -> str:
    [vm] = (await ask(at.near, "GET", "/api/remote/far/vm"))["vms"]
    return f"#/vm/far/{vm['id']}/{tab}"


async def create(at: Lab, _: Path) -> None:
    page = at.page
    await page.click("#new", "document.querySelector('#create [name=node]')")
    await page.fill("#create [name=node]", "far")
    for name, value in {"image": "tiny", "name": "web", "memory": "128M", "disk_size": "1G"}.items():
        await page.fill(f"#create [name={name}]", value)
    await page.click("#create button.primary", row("web", "running"))


async def invite(at: Lab, folder: Path) -> None:
    page = at.page
    await at.go("#/peers", "document.querySelector('main [data-operation=invite_peer]')")
    await page.click("[data-operation=invite_peer]", "document.querySelector('#invite')")
    await page.click("#invite button.primary", "document.querySelector('.qr path')")
    ticket = read(await page.run(MODULES))
    assert await page.run("document.querySelector('dialog').innerText.match(/this machine alone/g).length") == 1
    await page.click("dialog header button", "!document.querySelector('dialog')")
    async with open_page(folder / "second") as guest:
        await guest.open(f"{at.other.url}/#/peers")
        await guest.click("main [data-operation=join_fleet]", "document.querySelector('#join')")
        await guest.fill("#join textarea", ticket)
        await guest.click("#join button.primary", "document.querySelector('#peers-table')")
    await page.until(
        "[...document.querySelectorAll('#peers-table tr')].some(row => /other[^]*online/.test(row.innerText))"
    )


async def pull_with_progress(at: Lab, _: Path) -> None:
    """Push from the far node, pull by this one: with progress, by the page alone."""
    page, image = at.page, f"{at.registry}/org/tiny:1"
    await at.go("#/images", "document.querySelector('main select.auto')")
    await page.fill("main select.auto", "far")
    await page.click("main tbody [data-operation=push_image]", "document.querySelector('#push')")
    await page.fill("#push [name=target]", image)
    await page.click(
        "#push button.primary", f"document.getElementById('notes').innerText.includes({json.dumps(image)})"
    )
    await page.fill("main select.auto", "")
    await page.run(WATCH)
    await page.click("#activity > button", "document.querySelector('#activity.open')")
    await page.click("main [data-operation=pull_image]", "document.querySelector('#pull')")
    await page.fill("#pull [name=image]", image)
    await page.click("#pull button.primary", has(image))
    assert await page.run("window.progress?.size") > 0, "progress was seen"


async def cancel(at: Lab, _: Path) -> None:
    page = at.page
    await page.click("main [data-operation=pull_image]", "document.querySelector('#pull')")
    await page.fill("#pull [name=image]", f"{at.silent}/never/comes:1")
    stop = "#activity [data-operation=cancel_operation]"
    await page.click("#pull button.primary", f"document.querySelector('{stop}')")
    await page.click(stop, "document.querySelector('#activity .operation .status').innerText === 'cancelled'")
    await page.click("#activity > button", "!document.querySelector('#activity.open')")


async def screen(at: Lab, _: Path) -> None:
    """What is typed is seen: the guest, which has booted, shows each character on its screen."""
    page = at.page
    await at.go(await vm_page(at, "screen"), f"document.querySelector('.screen canvas') && {has('live')}")
    await page.until(f"{LIT} > 500")
    await page.run("document.querySelector('.screen canvas').focus()")
    before = await page.run(LIT)
    for _attempt in range(40):
        for kind in ("keyDown", "keyUp"):
            await page.command("Input.dispatchKeyEvent", type=kind, key="x", code="KeyX", text="x")
        if await page.becomes(f"{LIT} > {before} + 200", 0.3):
            return
    raise AssertionError("the screen did not change")


async def first_frame(at: Lab, folder: Path) -> None:
    """The screen of a far guest comes no later than half a second after the guest's own."""
    [vm] = (await ask(at.far, "GET", "/api/vm"))["vms"]
    async with open_page(folder / "third") as direct:
        await direct.open(at.far.url + "/")
        own = [await direct.run(f"{FIRST_FRAME}('/api/vm/{vm['id']}/screen')") for _ in range(5)]
    through = [await at.page.run(f"{FIRST_FRAME}('/api/remote/far/vm/{vm['id']}/screen')") for _ in range(5)]
    print(f"first frame: {median(own):.0f} ms at the owner, {median(through):.0f} ms through a peer")
    assert median(through) < median(own) + 500


async def terminal(at: Lab, _: Path) -> None:
    page = at.page
    await at.go(await vm_page(at, "terminal"), f"document.querySelector('.xterm-rows') && {has('live')}")
    await page.until(says("login:"))
    await type_line(page, "root")
    await page.until(says("web#"))
    await type_line(page, "echo $((6*7)) is the answer")
    await page.until(says("42 is the answer"))


async def files(at: Lab, folder: Path) -> None:
    page, content = at.page, os.urandom(200_000)
    (folder / "sent.bin").write_bytes(content)
    await at.go(await vm_page(at, "files/%2Ftmp"), "document.querySelector('.drop input')")
    await choose(page, ".drop input", folder / "sent.bin")
    link = "document.querySelector('#files a[download=\"sent.bin\"]')"
    await page.until(link)
    async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
        assert (await http.get(await page.run(f"{link}.href"))).content == content
    await at.go(await vm_page(at, "shell"), "document.querySelector('#run')")
    await page.fill("#run [name=command]", "wc -c /tmp/sent.bin; sleep 1000")
    await page.click("#run button.primary", says("200000 /tmp/sent.bin"))


async def forward(at: Lab, _: Path) -> None:
    page = at.page
    await at.go(await vm_page(at, "forwards"), "document.querySelector('#forward')")
    await page.click("#forward button.primary", "document.querySelector('main table a')")
    async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
        assert "web" in (await http.get(await page.run("document.querySelector('main table a').href"))).text


async def kill(at: Lab, _: Path) -> None:
    """A node dies, the page says so and goes on; it is revoked."""
    page = at.page
    await at.other.kill()
    await at.go("#/fleet", "document.querySelector('article.stale')?.innerText.includes('other')")
    assert await page.run("document.querySelectorAll('article:not(.stale)').length") == 2
    await at.go("#/peers", "document.querySelector('#peers-table tr.stale [data-operation=revoke_peer]')")
    await page.click(
        "#peers-table tr.stale [data-operation=revoke_peer]", "document.querySelector('[data-answer=yes]')"
    )
    await page.click("[data-answer=yes]", f"!document.querySelector('dialog') && !{has('other')}")


async def delete(at: Lab, _: Path) -> None:
    await at.go(await vm_page(at, "overview"), "document.querySelector('main [data-operation=delete_vm]')")
    await at.page.click("main [data-operation=delete_vm]", "document.querySelector('[data-answer=yes]')")
    await at.page.click("[data-answer=yes]", "document.querySelector('#empty')")
    assert (await ask(at.far, "GET", "/api/vm"))["vms"] == []
