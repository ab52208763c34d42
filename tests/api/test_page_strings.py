"""What strangers can put into names, labels, logs and errors is shown as text; a thousand VMs are no burden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from tests.api.browser import PROGRAM, Page, open_page
from tests.api.served import SPEC, served
from tests.api.test_browser import at_peace
from tests.api.test_page import LIVE, WIDE, opened, views
from twinshare.protocols.events import P2pMessage

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROGRAM is None, reason="no browser: install chromium-headless-shell"),
]

MARKUP = "<img src=/web/none onerror=hurt()><script>hurt()</script><b id=hurt>'\"`${hurt()}"

# Every string of every answer is markup, but for those by which the page works.
PLANT = f"""
window.hurt = () => window.isHurt = true;
const KEPT = new Set(["id", "name", "node", "status", "state", "role", "kind", "target", "p2p", "principal", "owner",
  "idempotency_key", "digest", "session"]);
const LISTS = ["problems", "warnings", "addresses", "used_by"];
const FAILED = {{state: "failed", error: {{error: {json.dumps(MARKUP)}, code: "internal"}}}};
const MARKUP = {json.dumps(MARKUP)};
const plant = (value, key) => {{
  if (typeof value === "string") return KEPT.has(key) || /^\\d{{4}}-\\d\\d-/.test(value) ? value : MARKUP;
  if (Array.isArray(value)) return LISTS.includes(key) ? [MARKUP] : value.map(one => plant(one, key));
  if (value && typeof value === "object") {{
    const planted = Object.fromEntries(Object.entries(value).map(([name, one]) => [name, plant(one, name)]));
    if ("labels" in planted) planted.labels = {{[MARKUP]: MARKUP}};
    if (planted.state === "done" && "progress" in planted) Object.assign(planted, FAILED);
    return planted;
  }}
  return value;
}};
const json = Response.prototype.json;
Response.prototype.json = async function () {{ return plant(await json.call(this), ""); }};
"""


async def script_first(page: Page, source: str) -> None:
    await page.command("Page.addScriptToEvaluateOnNewDocument", source=source)


async def test_markup_in_any_string_is_text(tmp_path: Path) -> None:
    async with opened(tmp_path) as at:
        page = at.page
        await script_first(page, PLANT)
        await page.open("about:blank")
        await page.open(at.api.url + "/")
        await page.until(f"{LIVE} && document.querySelectorAll('#vms tbody tr').length > 3")
        at.api.node.events.publish(
            P2pMessage(sender=MARKUP, name=MARKUP, message_type=MARKUP, data={MARKUP: MARKUP, "id": at.ids["web-1"]})
        )
        shown = 0
        for name, (address, _) in views(at.ids).items():
            await page.run(f"void (location.hash = {json.dumps(address)})")
            title = "document.querySelector('main h1')"
            await page.until(f"{title} && !document.querySelector('main .loading')")
            await trio.sleep(0.3)
            if name == "terminal":
                await page.run("document.querySelector('#activity button').click()")
            shown += await page.run("Number(document.body.innerText.includes('<img src=/web/none'))")
            assert await page.run("document.querySelectorAll('#hurt, img[src$=none], main script').length") == 0, name
        assert shown > 8, "the markup is seen, as text"
        assert await page.run("'isHurt' in window") is False
        assert not any(url.endswith("/web/none") for url in page.requests)
        assert not [one for one in page.complaints if "security" in one]


COUNT = 1000
# The fleet answers with a thousand VMs; first paint and redraws are timed by the page's own clock.
CROWD = f"""
const json = Response.prototype.json;
Response.prototype.json = async function () {{
  const body = await json.call(this);
  if (!body.vms || !body.vms.length) return body;
  const numbered = at => ({{...body.vms[0], id: `id-${{at}}`, name: `vm-${{at}}`}});
  return {{vms: Array.from({{length: {COUNT}}}, (_, at) => numbered(at))}};
}};
new MutationObserver((_, observer) => {{
  if (document.querySelectorAll("#vms tbody tr").length < 10) return;
  window.painted = performance.now();
  observer.disconnect();
}}).observe(document, {{childList: true, subtree: true}});
"""
REDRAW = """(async () => {
  const {state, set} = await import("/web/store.js");
  const times = [];
  for (let turn = 0; turn < 20; turn += 1) {
    const begun = performance.now();
    const status = turn % 2 ? "running" : "paused";
    set({vms: state.vms.map(vm => vm.id === "id-1" ? {...vm, status} : vm)});
    const row = () => document.querySelector("a[href$='/id-1']").closest("tr");
    while (!row().innerText.includes(status)) await new Promise(done => setTimeout(done));
    times.push(performance.now() - begun);
  }
  return times.sort((a, b) => a - b)[10];
})()"""


async def test_a_thousand_vms(tmp_path: Path) -> None:
    async with served(tmp_path / "node") as api, open_page(tmp_path / "browser") as page:
        (await api.client.post("/api/vm", json=SPEC)).raise_for_status()
        await page.shape(*WIDE)
        await script_first(page, CROWD)
        await page.open(api.url + "/")
        await page.until("window.painted")
        painted = await page.run("window.painted")
        redraw = await page.run(REDRAW)
        print(f"first paint {painted:.0f} ms, redraw {redraw:.1f} ms")
        assert await page.run("document.querySelectorAll('#vms tbody tr').length") < 60, "only what is seen is drawn"
        await page.run("document.querySelector('.table').scrollTop = 1e6")
        await page.until("document.querySelector('#vms tbody').innerText.includes('vm-999')")
        assert painted < 1500
        assert redraw < 50
        at_peace(page, api)
