"""Every view of the page in a real browser: what it shows and does, for whom, without a complaint.

With `TWINSHARE_PICTURES` as a folder, `test_each_view` puts its pictures there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import convert

from tests.api.browser import PROGRAM, Page, open_page
from tests.api.served import SPEC, TABLE, Served, served, served_in_a_fleet
from tests.api.test_browser import at_peace, row
from tests.api.test_cli_qr import read
from twinshare.agent.node import Node
from twinshare.agent.p2p.memory import MemoryNetwork
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.vm import VmSpec

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROGRAM is None, reason="no browser: install chromium-headless-shell"),
]

WEB = Path(__file__).parents[2] / "api" / "web"
AXE = Path(__file__).parents[1] / "vendor" / "axe-core" / "axe.min.js"
WIDE, PHONE = (1280, 800), (390, 844)
LIVE = "document.getElementById('live')?.innerText === 'live'"

# What moves for a while has come to rest.
STILL = """document.getAnimations().every(one =>
  one.playState !== 'running' || one.effect?.getTiming().iterations === Infinity)"""

# Operations that no button of the page does, and why.
WITHOUT = {
    "send_message": "messages are for programs",
    "list_vms": "the list of the fleet has them",
    "get_vm": "the list has all of it",
    "vm_ip": "the list has it",
    "whoami": "show_session has it, and the session",
    "get_image": "the list has all of it",
    "get_peer": "the list has all of it",
    "p2p_status": "the health has it",
    "wait_operation": "the event stream says when an operation ends",
}


@dataclass(frozen=True)
class Opened:
    """A node with a peer, and the page of the first in a browser."""

    api: Served
    far: Node
    page: Page
    network: MemoryNetwork
    ids: dict[str, str]

    async def go(self, address: str, then: str) -> None:
        await self.page.run(f"void (location.hash = {json.dumps(address)})")
        await self.page.until(then)


@asynccontextmanager
async def opened(folder: Path, guests: str = "") -> AsyncIterator[Opened]:
    network = MemoryNetwork()
    async with served_in_a_fleet(folder, network, guests) as (api, far), open_page(folder / "browser") as page:
        labels = {"web-1": {"tier": "web"}, "web-2": {"tier": "web"}, "web-10": {"tier": "web"}, "db": {"tier": "data"}}
        ids = {}
        for name, own in labels.items():
            body = {**SPEC, "name": name, "labels": own, "start": name != "db"}
            ids[name] = (await api.client.post("/api/vm", json=body)).raise_for_status().json()["id"]
        made = await api.client.post("/api/remote/far/vm", json={**SPEC, "name": "cache", "start": True})
        ids["cache"] = made.raise_for_status().json()["vm_id"]
        await page.shape(*WIDE)
        await page.open(api.url + "/")
        await page.until(f"{LIVE} && {row('cache', 'running')}")
        yield Opened(api, far, page, network, ids)


def has(text: str) -> str:
    return f"document.getElementById('content').innerText.includes({json.dumps(text)})"


def views(ids: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Each view: its address, and what is true once it shows something."""
    vm = f"#/vm/here/{ids['web-1']}"
    return {
        "vms": ("#/vms", row("web-10", "running")),
        "fleet": ("#/fleet", "document.querySelectorAll('article .meter').length === 6"),
        "vm": (vm, "document.querySelectorAll('.plot canvas').length === 4"),
        "terminal": (f"{vm}/terminal", "document.querySelector('.xterm-rows')"),
        "screen": (f"{vm}/screen", f"document.querySelector('.screen canvas') && {has('live')}"),
        "shell": (f"{vm}/shell", "document.querySelector('main .empty, #run')"),
        "files": (f"{vm}/files", "document.querySelector('main .empty, #files')"),
        "forwards": (f"{vm}/forwards", has("No port is forwarded.")),
        "settings": (f"{vm}/settings", "document.querySelector('#settings textarea')?.value === 'tier=web'"),
        "log": (f"{vm}/log", "document.querySelector('.log, .empty')"),
        "events": (f"{vm}/events", has("Create VM")),
        "images": ("#/images", has("disk:latest")),
        "peers": ("#/peers", has("founder")),
        "access": ("#/access", "document.querySelector('#token') && document.querySelector('main table, main .empty')"),
        "audit": ("#/audit", "document.querySelectorAll('#audit tbody tr').length > 5"),
        "health": ("#/health", has("The node is well.")),
    }


async def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with what is shown."""
    if not await page.run("'axe' in window"):
        await page.run(AXE.read_text() + ";0")
    found = await page.run("axe.run(document, {resultTypes: ['violations']}).then(done => done.violations)")
    return [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in found for node in one["nodes"]]


async def test_each_view(tmp_path: Path) -> None:
    pictures = Path(os.environ.get("TWINSHARE_PICTURES", tmp_path))
    wrong: list[str] = []
    async with opened(tmp_path / "fleet", "?guest_program=1") as at:
        await at.api.client.post(f"/api/vm/{at.ids['web-1']}/exec", json={"command": ["sleep", "600"], "detach": True})
        for name, (address, shown) in views(at.ids).items():
            await at.page.shape(*WIDE)
            await at.go(address, shown)
            for size, shape in (("wide", WIDE), ("phone", PHONE)):
                for dark in (False, True):
                    await at.page.shape(*shape, dark=dark)
                    await at.page.until(STILL)
                    wrong += [f"{name} {size} {dark}: {one}" for one in await violations(at.page)]
                    wider = f"document.documentElement.scrollWidth - {shape[0]}"
                    wrong += [f"{name} {size}: too wide"] if await at.page.run(wider) > 0 else []
                    (pictures / f"{name}-{size}-{'dark' if dark else 'light'}.png").write_bytes(await at.page.picture())
        assert not wrong, "\n".join(wrong)
        at_peace(at.page, at.api)


PIXEL = """() => {
  const seen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  seen.drawImage(document.querySelector('.screen canvas'), 0, 0);
  return [...seen.getImageData(0, 0, 1, 1).data].join();
}"""


async def test_a_terminal_and_a_screen_of_a_peer(tmp_path: Path) -> None:
    async with opened(tmp_path) as at:
        page, vm = at.page, f"#/vm/far/{at.ids['cache']}"
        await at.go(f"{vm}/terminal", f"document.querySelector('.xterm-rows') && {has('live')}")
        await page.run("document.querySelector('.xterm-helper-textarea').focus()")
        await page.command("Input.insertText", text="whoami at a peer")
        await page.until("document.querySelector('.xterm-rows').innerText.includes('whoami at a peer')")
        await at.go(f"{vm}/screen", f"document.querySelector('.screen canvas') && {has('live')}")
        seen = f"({PIXEL})()"
        await page.until(f"{seen} === '20,112,90,255'")
        await page.run("document.querySelector('.screen canvas').focus()")
        await page.command("Input.dispatchKeyEvent", type="keyDown", key="a", code="KeyA")
        await page.command("Input.dispatchKeyEvent", type="keyUp", key="a", code="KeyA")
        await page.until(f"{seen} === '179,46,38,255'")
        at_peace(page, at.api)


async def read_page(host: str, port: int | str) -> bytes:
    with trio.fail_after(60):
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            return b"".join([part async for part in stream])


async def create_on_far(at: Opened) -> dict[str, Any]:
    """Fill in the dialog, correct what is refused, and return the VM that is made."""
    page = at.page
    await page.click("#new", "document.querySelector('#create [name=node]')")
    fields = {
        "image": "disk",
        "node": "far",
        "name": "new",
        "memory": "900T",
        "disk_size": "1G",
        "labels": "a=b\nports=80",
        "ttl": "3600",
        "mac": "52:54:00:AB:CD:01",
        "firmware": "uefi",
        "forwards": "http\n5353/udp",
    }
    for name, value in fields.items():
        await page.fill(f"#create [name={name}]", value)
    # What happens in the fleet meanwhile draws the page again, and leaves alone what is typed.
    await page.run("import('/web/store.js').then(store => new Promise(done => setTimeout(done, 100, store.set())))")
    assert await page.run("document.querySelector('#create [name=name]').value") == "new"
    alert = "document.querySelector('#create [role=alert]')"
    await page.click("#create button.primary", f"{alert}?.innerText.includes('HOST:GUEST')")
    await page.fill("#create [name=forwards]", "80\n5353")
    await page.click("#create button.primary", f"{alert}?.innerText.includes('memory')")
    [refused] = page.complaints
    assert "Failed to load resource" in refused
    page.complaints.clear()
    await page.fill("#create [name=memory]", "64M")
    await page.click("#create button.primary", row("new", "running"))
    made: dict[str, Any]
    [made] = [vm for vm in (await at.api.get("/api/remote/far/vm"))["vms"] if vm["name"] == "new"]
    assert (made["status"], made["labels"], made["ttl"]) == ("running", {"a": "b", "ports": "80"}, 3600)
    assert (made["mac"], made["firmware"]) == ("52:54:00:ab:cd:01", "uefi")
    return made


async def test_create_on_another_node_forward_capture_and_delete(tmp_path: Path) -> None:
    async with opened(tmp_path) as at:
        page, made = at.page, await create_on_far(at)
        added = (await at.api.get(f"/api/remote/far/vm/{made['id']}/port-forward"))["forwards"]
        assert [one["guest_port"] for one in added] == [80, 5353]
        opens = "document.querySelector('.facts a.tag')"
        await at.go(f"#/vm/far/{made['id']}", f"{opens} && {has('52:54:00:ab:cd:01')}")
        assert b"new" in await read_page(await page.run(f"{opens}.hostname"), 80)
        await at.go(f"#/vm/far/{made['id']}/settings", "document.querySelector('#settings')")
        await page.fill("#settings [name=ttl]", "0")
        await page.click("#settings button.primary", "document.querySelector('.note.good')")
        [changed] = [vm for vm in (await at.api.get("/api/remote/far/vm"))["vms"] if vm["name"] == "new"]
        assert (changed["ttl"], changed["labels"]) == (None, {"a": "b", "ports": "80"})
        for one in added:
            await at.api.client.delete(f"/api/remote/far/vm/{made['id']}/port-forward/{one['host_port']}")

        await at.go(f"#/vm/far/{made['id']}/forwards", "document.querySelector('#forward')")
        await page.click("#forward button.primary", "document.querySelector('main table a')")
        port = int((await page.run("document.querySelector('main table a').href")).rstrip("/").rpartition(":")[2])
        assert b"new" in await read_page("127.0.0.1", port)
        await page.click("[data-operation=remove_forward]", has("No port is forwarded."))

        await page.click("main [data-operation=capture_image]", "document.querySelector('dialog form')")
        await page.click(
            "dialog button[data-operation]", "document.getElementById('notes').innerText.includes('new-image')"
        )
        assert [one["name"] for one in (await at.api.get("/api/remote/far/image"))["images"]] == ["disk", "new-image"]

        await page.click("main [data-operation=delete_vm]", "document.querySelector('[data-answer=yes]')")
        await page.click("[data-answer=yes]", f"location.hash === '#/vms' && !({row('new', '')})")
        assert "new" not in {vm["name"] for vm in (await at.api.get("/api/fleet/vm"))["vms"]}
        at_peace(page, at.api)


async def test_many_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as at:
        page = at.page
        await page.fill("input[type=search]", "tier=web")
        await page.until("document.querySelectorAll('#vms tbody tr').length === 3")
        names = "[...document.querySelectorAll('#vms tbody th a')].map(link => link.innerText).join()"
        assert await page.run(names) == "web-1,web-2,web-10", "in natural order"
        await page.click("#vms thead .pick input", "document.querySelector('.tools [data-operation=stop_vm]')")
        await page.click(
            ".tools [data-operation=stop_vm]", "document.querySelectorAll('.tools [data-operation=start_vm]').length"
        )
        await page.until(" && ".join(row(name, "stopped") for name in ("web-1", "web-2", "web-10")))
        await page.click(".tools [data-operation=delete_vm]", "document.querySelectorAll('dialog li').length === 3")
        await page.click("[data-answer=yes]", "document.querySelectorAll('#vms tbody tr').length === 0")
        assert {vm["name"] for vm in (await at.api.get("/api/fleet/vm"))["vms"]} == {"db", "cache"}
        at_peace(page, at.api)


MODULES = r"""(() => {
  const code = document.querySelector('.qr'), side = code.viewBox.baseVal.width - 8;
  const squares = [...code.querySelector('path').getAttribute('d').matchAll(/M(\d+) (\d+)/g)];
  const dark = new Set(squares.map(([, x, y]) => `${x - 4},${y - 4}`));
  const line = row => Array.from({length: side}, (_, column) => Number(dark.has(`${column},${row}`)));
  return Array.from({length: side}, (_, row) => line(row));
})()"""


async def test_an_invitation_by_qr_code_lets_a_node_in_and_a_revocation_out(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with served(tmp_path / "here", network) as api, open_page(tmp_path / "browser") as page:
        await page.shape(*WIDE)
        await page.open(api.url + "/#/peers")
        await page.until("document.querySelector('main [data-operation=invite_peer]')")
        await page.click("[data-operation=invite_peer]", "document.querySelector('#invite')")
        await page.click("#invite button.primary", "document.querySelector('.qr path')")
        ticket = read(await page.run(MODULES))
        assert ticket in await page.run("document.querySelector('dialog code').innerText")
        link = await page.run("document.querySelectorAll('dialog code')[1].innerText")
        await page.click("dialog header button", "!document.querySelector('dialog')")
        async with served(tmp_path / "other", network, name="other") as other, open_page(tmp_path / "second") as guest:
            await guest.open(link.replace(api.url, other.url))
            await guest.until("document.querySelector('#join')")
            assert await guest.run("location.hash") == "#/peers", "the ticket is not kept in the history"
            assert await guest.run("document.querySelector('#join textarea').value") == ticket
            await guest.click("dialog header button", "!document.querySelector('dialog')")
            await guest.click("main [data-operation=join_fleet]", "document.querySelector('#join')")
            assert await guest.run("document.querySelector('#join textarea').value") == ""
            await guest.fill("#join textarea", f"twinshare peer join {ticket}")
            await guest.click("#join button.primary", "document.querySelector('#peers-table tbody tr')")
            at_peace(guest, other)
            await page.until("document.querySelector('#peers-table tbody tr')?.innerText.includes('online')")
            await page.click("[data-operation=ping_peer]", f"{has(' ms')}")
            await page.click("[data-operation=revoke_peer]", "document.querySelector('[data-answer=yes]')")
            assert "other (operator) is revoked" in await page.run("document.querySelector('dialog').innerText")
            await page.click("[data-answer=yes]", f"!document.querySelector('dialog') && {has('No peer yet.')}")
        at_peace(page, api)


async def test_a_node_that_goes_away_is_shown_so_and_the_page_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as at:
        page = at.page
        at.network.partition([at.api.node.peer_id], [at.far.peer_id])
        await page.until("document.querySelector('#vms tr.stale')?.innerText.includes('last seen')")
        assert await page.run("document.querySelector('#vms tr.stale').innerText.includes('cache')")
        assert await page.run("document.querySelectorAll('#vms tr.stale [data-operation]').length") == 0
        await page.click("#vms tr:not(.stale) [data-operation=start_vm]", row("db", "running"))
        await at.go("#/fleet", "document.querySelector('article.stale')?.innerText.includes('offline')")
        at_peace(page, at.api)


async def enter(api: Served, page: Page, role: Role) -> None:
    """Open the page by the link of a token."""
    made = await api.node.tokens.create(TokenRequest(name=f"the-{role}", role=role))
    headers = {"authorization": f"Bearer {made.secret}"}
    link = (await api.client.post("/api/session", headers=headers)).json()["link"]
    await page.open(link)
    await page.until(LIVE)


OPERATIONS = {
    name: (verb, path, Role(role))
    for name, verb, path, role in re.findall(
        r'^  (\w+): \["(\w+)", "(.*)", "(\w+)"\],$', (WEB / "api.js").read_text(), re.MULTILINE
    )
}


def test_the_page_knows_the_operations_as_the_table_has_them() -> None:
    assert len(OPERATIONS) > 40
    known = {name: (method.verb, method.path, method.role) for name, method in TABLE.items()}
    assert {name: value for name, value in OPERATIONS.items() if name in known}.items() <= known.items()
    used = set(re.findall(r'"(\w+)"', "".join(file.read_text() for file in WEB.glob("*.js") if file.name != "api.js")))
    assert OPERATIONS.keys() - used == set(), "operations that nothing uses"
    assert known.keys() - OPERATIONS.keys() - WITHOUT.keys() == set(), "an operation without a button needs a reason"


@pytest.mark.parametrize("role", list(Role))
async def test_buttons_are_what_the_role_allows(role: Role, tmp_path: Path) -> None:
    async with served(tmp_path / "node", auth="token") as api, open_page(tmp_path / "browser") as page:
        made = await api.node.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": convert({**SPEC, "start": True}, VmSpec)})
        await enter(api, page, role)
        await page.until(row("one", "running"))
        found: set[str] = set()
        for address, shown in views({"web-1": made.id}).values():
            if role is not Role.ADMIN and re.search("terminal|screen|shell|files|settings|log|access|audit", address):
                continue
            await page.run(f"void (location.hash = {json.dumps(address)})")
            if role is Role.ADMIN and not re.search("fleet|peers|vms$|settings", address):
                await page.until(shown)
            await trio.sleep(0.2)
            every = "[...document.querySelectorAll('[data-operation]')].map(one => one.dataset.operation)"
            found |= set(await page.run(every))
        assert {name for name in found if not role.includes(OPERATIONS[name][2])} == set()
        expected = {"create_vm"} if role.includes(Role.OPERATOR) else set()
        assert expected <= found
        assert ("stop_vm" in found) == (role is Role.ADMIN), "an operator changes what it owns"
        at_peace(page, api)


async def test_a_session_that_is_ended_locks_the_page(tmp_path: Path) -> None:
    async with served(tmp_path / "node", auth="token") as api, open_page(tmp_path / "browser") as page:
        await enter(api, page, Role.ADMIN)
        await page.run("void (location.hash = '#/access')")
        await page.click("#sessions [data-operation=end_session]", "document.body.innerText.includes('twinshare ui')")
        assert not await page.run("document.getElementById('content').innerText.includes('Tokens')")
