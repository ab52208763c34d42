"""Images in a real browser: a disk that is dropped, a pull, their progress, and that both can be cancelled."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

import pytest

from tests.agent.remote import install
from tests.api.browser import PROGRAM, Page
from tests.api.test_browser import at_peace
from tests.api.test_page import has, opened
from twinshare.agent.images.contract_samples import raw_disk, with_boot_sector

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROGRAM is None, reason="no browser: install chromium-headless-shell"),
]

PAGE = "#/images"
SLOW = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 1 << 20}
FULL = {**SLOW, "uploadThroughput": -1}
OPEN = "document.querySelector('#activity .operation [data-operation=cancel_operation]')"


async def drop(page: Page, name: str, content: bytes) -> None:
    """Drop a file on the page, as by hand; after its first sectors it is empty."""
    await page.until("document.querySelector('label.drop')")
    await page.run(f"""(() => {{
      const head = Uint8Array.from(atob({json.dumps(b64encode(content[:4096]).decode())}), one => one.charCodeAt(0));
      const whole = new Uint8Array({len(content)});
      whole.set(head);
      const data = new DataTransfer();
      data.items.add(new File([whole], {json.dumps(name)}));
      const over = new DragEvent("dragover", {{bubbles: true, cancelable: true, dataTransfer: data}});
      const label = document.querySelector("label.drop");
      label.dispatchEvent(over);
      if (!over.defaultPrevented) throw new Error("the page does not take what is dragged over it");
      label.dispatchEvent(new DragEvent("drop", {{bubbles: true, cancelable: true, dataTransfer: data}}));
    }})()""")


async def test_a_disk_is_dropped_with_progress_and_can_be_cancelled(tmp_path: Path) -> None:
    disk = with_boot_sector(bytes(512)).ljust(2 << 20, b"\0")
    async with opened(tmp_path) as at:
        page = at.page
        await at.go(PAGE, has("disk:latest"))
        await page.command("Network.emulateNetworkConditions", **SLOW)
        await drop(page, "Debian 12.raw", disk)
        await page.until("/Debian 12.raw: [1-9]\\d* %/.test(document.querySelector('.drop [role=status]')?.innerText)")
        await page.click("[data-upload=cancel]", "document.querySelector('label.drop')")
        await page.command("Network.emulateNetworkConditions", **FULL)
        assert [one["name"] for one in (await at.api.get("/api/image"))["images"]] == ["disk"]
        await drop(page, "Debian 12.raw", disk)
        await page.until(has("debian-12:latest"))
        assert await page.run("document.getElementById('notes').innerText") == "debian-12:latest", "no error is shown"
        at_peace(page, at.api)


@pytest.mark.parametrize("node", ["here", "far"])
async def test_a_pull_shows_its_progress_and_is_cancelled(
    node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = install(monkeypatch)
    remote.contents["example.com/debian:12"] = raw_disk(1)
    async with opened(tmp_path) as at:
        page = at.page
        await at.go(PAGE, has("disk:latest"))
        if node == "far":
            await page.fill("main select.auto", "far")
        remote.close()
        await page.click("#activity > button", "document.querySelector('#activity.open')")
        await page.click("main [data-operation=pull_image]", "document.querySelector('#pull')")
        await page.fill("#pull [name=image]", "example.com/debian:12")
        await page.click(
            "#pull button.primary", f"{OPEN} && document.querySelector('#activity .far').innerText.includes('fetching')"
        )
        assert await page.run("document.querySelector('#activity [role=progressbar]').ariaValueNow") == "50"
        await page.click(
            "#activity [data-operation=cancel_operation]",
            "document.querySelector('#activity .operation .status').innerText === 'cancelled'",
        )
        remote.opened.set()
        await page.click("main [data-operation=pull_image]", "document.querySelector('#pull')")
        await page.fill("#pull [name=image]", "example.com/debian:12")
        await page.click("#pull button.primary", has("debian:12"))
        root = "/api" if node == "here" else "/api/remote/far"
        assert "debian" in {one["name"] for one in (await at.api.get(f"{root}/image"))["images"]}
        at_peace(page, at.api)


async def test_an_answer_that_comes_after_its_events_undoes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a pull shows how it began, and took away the progress that events had brought meanwhile."""
    remote = install(monkeypatch)
    remote.contents["example.com/debian:12"] = raw_disk(1)
    async with opened(tmp_path) as at:
        page = at.page
        await at.go(PAGE, has("disk:latest"))
        remote.close()
        await page.click("#activity > button", "document.querySelector('#activity.open')")
        await page.run("""(() => {
          const plain = window.fetch;
          const late = new Promise((done) => (window.letAnswerCome = done));
          window.fetch = async (url, options) => {
            const answer = await plain(url, options);
            if (options?.method === "POST") await late;
            return answer;
          };
        })()""")
        await page.click("main [data-operation=pull_image]", "document.querySelector('#pull')")
        await page.fill("#pull [name=image]", "example.com/debian:12")
        bar = "document.querySelector('#activity [role=progressbar]')?.ariaValueNow"
        await page.click("#pull button.primary", f"{bar} === '50'")
        shown = f"new Promise(done => {{ letAnswerCome(); setTimeout(() => done({bar}), 100); }})"
        assert await page.run(shown) == "50"
        remote.opened.set()
        await page.until(has("debian:12"))
        at_peace(page, at.api)
