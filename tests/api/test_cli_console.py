"""`twinshare vm console` as a process, in a terminal and in pipes, against a node in memory."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.agent.nodes import spec
from tests.api.test_console import nobody_listens, running
from tests.nodes.test_in_memory import call
from tests.nodes.test_tunnels import pair
from twinshare.api.server import open_api

Stdio = trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]
COMMAND = [sys.executable, "-m", "twinshare", "vm", "console"]


def environment(url: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TWINSHARE_")} | {
        "TWINSHARE_API": url
    }


async def piped(
    url: str, *arguments: str, typed: bytes = b"", code: int = 0, more: Mapping[str, str] | None = None
) -> tuple[bytes, str]:
    """What it writes to stdout and stderr."""
    with trio.fail_after(120):
        done = await trio.run_process(
            [*COMMAND, *arguments], stdin=typed, capture_stdout=True, capture_stderr=True, check=False,
            env=environment(url) | dict(more or {}),
        )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr.decode()


class Pipes:
    """The command with pipes, and a test that decides what is typed when."""

    def __init__(self, process: trio.Process, stdio: Stdio) -> None:
        self.process, self._stdio = process, stdio

    async def echo(self, typed: bytes, within: float = 60) -> bytes:
        """Type, and hear as much."""
        heard = b""
        with trio.fail_after(within):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stdio.send_all, typed)
                while len(heard) < len(typed) and (said := await self._stdio.receive_some()):
                    heard += said
        return heard

    async def leave(self, within: float = 60) -> bytes:
        """End the input, and see it leave of itself; what it still says."""
        with trio.fail_after(within):
            await self._stdio.send_eof()
            heard = b"".join([said async for said in self._stdio])
            assert await self.process.wait() == 0
        return heard


@asynccontextmanager
async def pipes(url: str, *arguments: str) -> AsyncIterator[Pipes]:
    process = await trio.lowlevel.open_process(
        [*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(url)
    )
    assert process.stdio is not None
    try:
        async with process.stdio as stdio:
            yield Pipes(process, stdio)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


class Terminal:
    """A pseudo-terminal with the command in it."""

    def __init__(self, master: int, slave: int, process: trio.Process) -> None:
        self.slave, self.process = slave, process
        self._stream = trio.lowlevel.FdStream(os.dup(master))
        self.shown = b""

    async def see(self, wanted: bytes, within: float = 60) -> None:
        with trio.move_on_after(within):
            while wanted not in self.shown:
                self.shown += await self._stream.receive_some(4096)
        assert wanted in self.shown, self.shown[-2000:]

    async def type(self, keys: bytes) -> None:
        await self._stream.send_all(keys)

    async def end(self, within: float = 60) -> int:
        """The exit code."""
        with trio.fail_after(within):
            return await self.process.wait()

    async def aclose(self) -> None:
        await self._stream.aclose()

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON


@asynccontextmanager
async def terminal(
    url: str,
    *arguments: str,
    killed: bool = False,
    command: Sequence[str] = COMMAND,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[Terminal]:
    """The command in a terminal, whose modes must be as they were when it ends, unless it is `killed`."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = await trio.lowlevel.open_process(
        [*command, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment(url), start_new_session=True,
        pass_fds=pass_fds,
    )  # fmt: skip
    shown = Terminal(master, slave, process)
    try:
        yield shown
        assert killed or termios.tcgetattr(slave) == before
    finally:
        if process.returncode is None:
            process.kill()
        await shown.aclose()
        os.close(master)
        os.close(slave)
        await process.wait()


async def test_in_a_terminal(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, hypervisor, id):
        async with terminal(api.url, "one") as shown:
            await shown.see(b"console of VM 'one' on node 'here'; Ctrl-] leaves")
            await shown.type(b"echo \x03\x04\x1a")
            await shown.see(b"echo \x03\x04\x1a")
            assert shown.is_raw
            shown.process.send_signal(signal.SIGWINCH)
            await shown.type(b"more")
            await shown.see(b"more")
            await shown.type(b"\x1dnot this")
            assert await shown.end() == 0
            await shown.see(b"left the console of VM 'one'")
            assert b"not this" not in shown.shown
        await nobody_listens(api)
        async with terminal(api.url, "one") as shown:
            await shown.see(b"prompt")
            hypervisor.power_off(id)
            assert await shown.end() == 0
            await shown.see(b"VM 'one' has stopped")


async def test_a_terminal_is_given_back_when_it_ends_badly(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, _, _id):
        async with terminal(api.url, "one") as shown:
            await shown.see(b"prompt")
            assert shown.is_raw
            shown.process.terminate()
            assert await shown.end() == 128 + signal.SIGTERM
        async with terminal(api.url, "one", "--for", "0.5") as shown:
            assert await shown.end() == 0
        await nobody_listens(api)


# The command, with a thread that takes the signal: the main thread's select is not cut short, as when a signal comes
# in the moment before it.
SIGNALLED = """
import os, signal, sys, threading
def take():
    os.read(int(sys.argv.pop()), 1)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
thread = threading.Thread(target=take, daemon=True)
thread.start()
from twinshare.api.cli import main
sys.argv[:1] = ["twinshare", "vm", "console"]
main()
"""


async def test_a_signal_that_does_not_interrupt_the_wait_ends_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    async with running(tmp_path) as (api, _, _id):
        command = [sys.executable, "-c", SIGNALLED, "one", str(reader)]
        async with terminal(api.url, command=command, pass_fds=[reader]) as shown:
            await shown.see(b"prompt")
            os.write(writer, b"x")
            assert await shown.end() == 128 + signal.SIGTERM
    os.close(reader)
    os.close(writer)


async def test_a_guest_that_does_not_read_keeps_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, hypervisor, id):

        async def deaf(_stream: trio.SocketStream) -> None:
            await trio.sleep_forever()

        hypervisor.serve_console(id, deaf)
        async with terminal(api.url, "one") as shown, trio.open_nursery() as nursery:
            await shown.see(b"prompt")

            async def paste() -> None:
                for _ in range(200):
                    await shown.type(b"x" * 4000)
                await shown.type(b"\x1d")

            nursery.start_soon(paste)
            assert await shown.end() == 0


async def test_a_killed_client_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, _, id):
        async with pipes(api.url, id) as pipe:
            assert await pipe.echo(b"x") == b"x"
            pipe.process.kill()
        await nobody_listens(api)


async def test_in_pipes(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, hypervisor, id):
        said, messages = await piped(api.url, "one", typed=b"uname\r")
        assert said == b"uname\r\n"
        assert messages == "console of VM 'one' on node 'here'\nleft the console of VM 'one'\n"
        much = os.urandom(1 << 20).replace(b"\r", b"")

        async def echo_and_end(stream: trio.SocketStream) -> None:
            left = len(much)
            while left and (data := await stream.receive_some()):
                await stream.send_all(data)
                left -= len(data)

        hypervisor.serve_console(id, echo_and_end)
        said, messages = await piped(api.url, "one", "--for", "60", typed=much)
        assert said == much
        silent = trio.Event()

        async def late(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await silent.wait()
            await stream.send_all(b"late")

        hypervisor.serve_console(id, late)
        assert (await piped(api.url, "one", "--for", "0", typed=b"x"))[0] == b""
        silent.set()
        assert (await piped(api.url, "one", "--for", "60", typed=b"x"))[0] == b"late"


async def test_exit_codes(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, _, id):
        assert "nope" in (await piped(api.url, "nope", code=1))[1]
        await piped(api.url, "one", "--for", "-1", code=2)
        assert "no node answers" in (await piped("http://127.0.0.1:1", "one", code=4))[1]
        await api.client.post(f"/api/vm/{id}/stop", json={"force": True})
        assert "start it first" in (await piped(api.url, "one", code=1))[1]


async def test_on_a_peer(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _), open_api(near) as url:
        await call(near, "create_vm", spec=spec("far", start=True))
        said, messages = await piped(url, "far", "--on", "node-0", "--for", "0.3", typed=b"x")
        assert said == b"x"
        assert "VM 'far' on node 'node-0'" in messages
        assert "VM 'far' on node 'node-1'" in (await piped(url, "far", "--for", "0"))[1]
        async with terminal(url, "far", "--on", "node-0") as shown:
            await shown.see(b"on node 'node-0'")
            await near.mesh.stop()
            assert await shown.end() == 4
            await shown.see(b"the connection with the peer was lost")
        assert "not running" in (await piped(url, "far", "--on", far.peer_id, code=4))[1]
