"""A real browser without a window, steered over the DevTools protocol through a pipe.

Each message is JSON that ends with a zero byte. What the page does is kept: what it asked for, what it complained of.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

PROGRAM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser"))), None)
# No sandbox: the tests run as root. No name is resolved: a page that wants another host's file has an error.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT = 60.0


class Moved(Exception):
    """The page went to another one while it was asked."""


class Page:
    """One tab. `requests` are the addresses it asked for; `complaints` its errors, from scripts, policy and network."""

    def __init__(self, send: trio.abc.SendStream) -> None:
        self._send = send
        self._session: str | None = None
        self._answers: dict[int, dict[str, Any]] = {}
        self._loads = 0
        self._changed = trio.Condition()
        self._number = 0
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def listen(self, receive: trio.abc.ReceiveStream) -> None:
        """Take what the browser tells, until it ends."""
        held = b""
        async for data in receive:
            *whole, held = (held + data).split(b"\0")
            async with self._changed:
                for message in whole:
                    self._take(json.loads(message))
                self._changed.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        found = message.get("params", {})
        match message.get("method"):
            case None:
                self._answers[message["id"]] = message
            case "Page.loadEventFired":
                self._loads += 1
            case "Network.requestWillBeSent":
                self.requests.append(found["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(found["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if found["type"] in {"error", "warning", "assert"}:
                self.complaints.append(json.dumps(found["args"]))
            case "Log.entryAdded" if found["entry"]["level"] in {"error", "warning"}:
                self.complaints.append(json.dumps(found["entry"]))

    async def _wait(self, ready: Callable[[], bool]) -> None:
        with trio.fail_after(TIMEOUT):
            async with self._changed:
                while not ready():
                    await self._changed.wait()

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._send.send_all(json.dumps(message).encode() + b"\0")
        await self._wait(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if "error" in answer and any(word in answer["error"]["message"] for word in ("navigated", "context")):
            raise Moved(answer["error"]["message"])
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    async def begin(self) -> None:
        target = await self.command("Target.createTarget", url="about:blank")
        made = await self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = made["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.command(f"{domain}.enable")

    async def open(self, url: str) -> None:
        """Returns when all that the page names is loaded."""
        loads = self._loads
        found = await self.command("Page.navigate", url=url)
        assert "errorText" not in found, found
        await self._wait(lambda: self._loads > loads)

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression, when a promise it may be is kept."""
        done = await self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, (script, done)
        return done["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        if not await self.becomes(condition, TIMEOUT):
            shown = await self.run("document.body.innerText")
            raise AssertionError(f"not so: {condition}; complaints: {self.complaints}; the page shows: {shown[:2000]}")

    async def becomes(self, condition: str, within: float) -> bool:
        with trio.move_on_after(within):
            while True:
                with suppress(Moved):
                    if await self.run(f"!!({condition})"):
                        return True
                await trio.sleep(0.05)
        return False

    async def shape(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give the page a size in pixels, and the light or the dark of the system."""
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self) -> bytes:
        """Return what is seen, as PNG."""
        shot = await self.command("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        return base64.b64decode(shot["data"])

    async def fill(self, selector: str, value: str) -> None:
        """Put a value into a field as somebody who types."""
        field = f"document.querySelector({json.dumps(selector)})"
        await self.until(field)
        notify = "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true}))"
        await self.run(f"(field => {{ field.value = {json.dumps(value)}; {notify}; }})({field})")

    async def click(self, selector: str, then: str = "true") -> None:
        """Press it, again if `then` does not come true in a while: a page may still be at work on what it shows."""
        sought = f"document.querySelector({json.dumps(selector)})"
        for _ in range(3):
            await self.until(sought)
            with suppress(Moved):
                await self.run(f"{sought}.click()")
            if await self.becomes(then, TIMEOUT / 3):
                return
        await self.until(then)


@asynccontextmanager
async def open_page(folder: Path) -> AsyncIterator[Page]:
    """A browser with one empty tab; its files are in `folder`."""
    assert PROGRAM is not None
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    # Above the numbers that the browser expects them under: 3 to read from, 4 to write to.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
    for end in (theirs_in, theirs_out):
        os.close(end)
    shell = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
    command = ["bash", "-c", shell, "bash", PROGRAM, *FLAGS, f"--user-data-dir={folder}"]
    process = await trio.lowlevel.open_process(
        command, stdin=-3, stdout=-3, stderr=-3, pass_fds=ends, start_new_session=True
    )
    for end in ends:
        os.close(end)
    page = Page(trio.lowlevel.FdStream(ours_out))
    receive = trio.lowlevel.FdStream(ours_in)
    try:
        async with page._send, receive, trio.open_nursery() as nursery:
            nursery.start_soon(page.listen, receive)
            await page.begin()
            yield page
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
