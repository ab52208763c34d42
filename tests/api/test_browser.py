"""The pages in a real browser: they run under their policy, offline, without a complaint, and do what they show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.api.browser import PROGRAM, Page, open_page
from tests.api.served import SPEC, Served, served

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROGRAM is None, reason="no browser: install chromium-headless-shell"),
]


CONSOLE = """new Promise((done, failed) => {
  const socket = new WebSocket(location.origin.replace("http", "ws") + "/api/vm/one/console");
  let heard = "";
  socket.binaryType = "arraybuffer";
  socket.onopen = () => socket.send("typed in a page");
  socket.onmessage = (event) => {
    heard += new TextDecoder().decode(event.data);
    if (heard.length >= 15) { socket.close(); done(heard); }
  };
  socket.onerror = failed;
})"""


def at_peace(page: Page, api: Served) -> None:
    """It asked this node alone, and complained of nothing."""
    assert page.complaints == []
    assert page.requests
    elsewhere = [url for url in page.requests if not url.startswith((api.url + "/", "data:"))]
    assert elsewhere == []


def row(name: str, said: str) -> str:
    """JavaScript: whether the row of a VM says something."""
    says = f"[{json.dumps(name)}, {json.dumps(said)}].every(word => row.innerText.includes(word))"
    return f"[...document.querySelectorAll('#vms tr')].some(row => {says})"


async def test_the_page_of_a_node(tmp_path: Path) -> None:
    async with served(tmp_path / "node") as api, open_page(tmp_path / "browser") as page:
        await page.open(api.url + "/")
        await page.until("document.title === 'twinshare: here'")
        await page.until("document.getElementById('live').innerText === 'live'")
        await page.until("document.querySelector('#empty #new')")
        await api.client.post("/api/vm", json=SPEC)
        await page.until(row("one", "stopped"))
        await page.click("#vms [data-operation=start_vm]", row("one", "running"))
        assert await page.run(CONSOLE) == "typed in a page"
        await page.click("#new", "document.querySelector('#create')")
        for name, value in {
            "image": "disk",
            "name": "two",
            "memory": "64",
            "disk_size": "1G",
            "cpu_cores": "1",
        }.items():
            await page.fill(f"#create [name={name}]", value)
        await page.click("#create button.primary", row("two", "running"))
        made = {vm["name"]: vm["status"] for vm in (await api.get("/api/vm"))["vms"]}
        assert made == {"one": "running", "two": "running"}
        await page.click("a[href='#/health']", "document.querySelector('a[href=\"/swagger-ui\"]')")
        for link in await page.run("[...document.querySelectorAll('a')].map(link => link.href)"):
            assert (await api.client.get(link)).status_code == 200, link
        swagger = "location.pathname === '/swagger-ui' && document.querySelector('.opblock')"
        await page.click("a[href='/swagger-ui']", swagger)
        at_peace(page, api)


def shown(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"


def operations(document: dict[str, Any]) -> int:
    return sum(len(verbs) for verbs in document["paths"].values())


@pytest.mark.parametrize(
    ("address", "root", "asked", "answered"),
    [
        ("/swagger-ui", "/api", "/api/vm", '"vms"'),
        ("/swagger-ui?dialect=meda", "/api/v1", "/api/v1/vms", '"name": "one"'),
    ],
)
async def test_swagger_ui_shows_and_asks(address: str, root: str, asked: str, answered: str, tmp_path: Path) -> None:
    async with served(tmp_path / "node") as api, open_page(tmp_path / "browser") as page:
        await api.client.post("/api/vm", json=SPEC)
        document = await api.get(f"{root}/openapi.json")
        other = operations(await api.get("/api/openapi.json" if root == "/api/v1" else "/api/v1/openapi.json"))
        await page.open(api.url + address)
        await page.until(f"document.querySelectorAll('.opblock').length === {operations(document)}")
        assert document["info"]["title"] in await page.run("document.querySelector('.info .title').innerText")
        assert await page.run("document.querySelectorAll('.errors-wrapper').length") == 0
        block = f".opblock-get:has([data-path='{asked}'])"
        table = shown(f"{block} .live-responses-table")
        # Once, on a busy machine, the button was pressed before the page knew its operation, and stayed dead.
        known = shown(f"{block} .responses-table .highlight-code")
        await page.click(f"{block} .opblock-summary-control", f"{shown(f'{block} .execute')} && {known}")
        await page.click(f"{block} .execute", shown(f"{block} .live-responses-table .response-col_status"))
        text = await page.run(f"{table}.innerText")
        assert "200" in text
        assert answered in text
        assert "one" in text
        await page.click("nav a:not([aria-current])", f"document.querySelectorAll('.opblock').length === {other}")
        at_peace(page, api)
