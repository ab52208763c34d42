"""What the page may take: memory over a working day of events."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.browser import PROGRAM, Page, open_page
from tests.api.served import SPEC, served
from tests.api.test_browser import at_peace, row
from tests.api.test_page import LIVE
from tests.api.test_page_strings import script_first

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROGRAM is None, reason="no browser: install chromium-headless-shell"),
]

MIB = 1 << 20
# A fifth of what is allowed: with a state that is not bounded it grew by 4.4 MiB.
HEAP_GROWTH = 2 * MIB
# One event a second for eight hours, in a few seconds.
EVENTS = 8 * 3600
WARM = 2_000
# The page's own event source, so that the test can say what the node would; reads are answered as they were first.
SOURCE = """
const Source = window.EventSource;
window.EventSource = class extends Source {
  constructor(url) { super(url); window.source = this; }
};
addEventListener("DOMContentLoaded", () => {
  new MutationObserver((_, observer) => {
    if (document.getElementById("live")?.innerText !== "live") return;
    window.liveAfter = performance.now();
    observer.disconnect();
  }).observe(document, {childList: true, subtree: true, characterData: true});
});
window.endless = () => {
  const kept = new Map(), real = window.fetch;
  window.fetch = async (url, options) => {
    const id = /operations\\/(op-\\d+)/.exec(url)?.[1];
    const progress = {done: 1, total: 1, unit: "steps", message: ""}, created_at = new Date().toISOString();
    const operation = {id, kind: "start_vm", target: "one", node: "here", state: "done", progress, created_at};
    if (id) return new Response(JSON.stringify({...operation, principal: "local"}));
    if (!kept.has(url)) kept.set(url, await (await real(url, options)).text());
    return new Response(kept.get(url));
  };
};
window.events = async (first, count, vm) => {
  const say = (type, data) => source.dispatchEvent(new MessageEvent(type, {data: JSON.stringify({type, data})}));
  for (let at = first; at < first + count; at += 1) {
    const id = `op-${at >> 2}`, kind = "start_vm", target = "one";
    const progress = {done: at % 4, total: 4, unit: "steps", message: `step ${at}`};
    if (at % 4 === 0) say("vm.state", {id: vm, name: "one", status: at % 8 ? "running" : "stopped", reason: null});
    else if (at % 4 < 3) say("op.progress", {id, kind, target, state: "running", progress});
    else say("op.done", {id, kind, target, state: "done", progress});
    if (at % 200 === 0) await new Promise(done => setTimeout(done));
  }
  await new Promise(done => setTimeout(done, 500));
};
"""


async def heap(page: Page) -> int:
    """Bytes of the page's objects that are in use, once what is not was collected."""
    for _ in range(2):
        await page.command("HeapProfiler.collectGarbage")
    return int((await page.command("Runtime.getHeapUsage"))["usedSize"])


async def test_a_working_day_of_events_leaves_the_heap_as_it_was(tmp_path: Path) -> None:
    async with served(tmp_path / "node") as api, open_page(tmp_path / "browser") as page:
        vm = (await api.client.post("/api/vm", json=SPEC)).raise_for_status().json()["id"]
        await script_first(page, SOURCE)
        await page.open(api.url + "/")
        await page.until(f"{LIVE} && {row('one', 'stopped')}")
        await page.click("#activity > button", "document.querySelector('#activity.open')")
        await page.run("endless()")
        await page.run(f"events(0, {WARM}, '{vm}')")
        before = await heap(page)
        await page.run(f"events({WARM}, {EVENTS}, '{vm}')")
        growth = await heap(page) - before
        live = await page.run("window.liveAfter")
        print(f"live after {live:.0f} ms; heap {before / MIB:.1f} MiB, {growth / MIB:+.2f} MiB after {EVENTS} events")
        operations = await page.run("import('/web/store.js').then(({state}) => state.operations.size)")
        assert operations <= 201
        assert growth < HEAP_GROWTH
        at_peace(page, api)
