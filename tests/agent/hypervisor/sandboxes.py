"""What sandbox tests share: an agent as a process, a server that QEMU is, and a small world of network namespaces."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.rules.tree import TOP
from twinshare.agent.background import open_background
from twinshare.agent.hypervisor.sandbox.identity import blocking_directory

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
AGENT = Path(__file__).with_name("sandbox_agent.py")
QMP_PORT = 4444
OUTSIDE, OUTSIDE_6 = "203.0.113.5", "2001:db8:5::5"
OWN = ("127.0.0.1", "198.18.0.2", "198.18.0.3", "10.9.9.9", "0.0.0.0")  # noqa: S104 - nothing is bound
OWN_6 = ("::1", "fd00:77::2", "fd00:77::3", "fd00:99::9", "::ffff:198.18.0.3")
# A real server in every sandbox: QEMU without a machine greets whoever connects to its control port.
QEMU = ["qemu-system-x86_64", "-M", "none", "-display", "none", "-qmp", f"tcp:127.0.0.1:{QMP_PORT},server=on,wait=off"]


class Agent:
    """Another process with an open sandbox, which takes commands over its pipes."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._heard = b""

    async def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        with trio.fail_after(60):
            while b"\n" not in self._heard:
                chunk = await self._process.stdout.receive_some()
                assert chunk, "the agent ended"
                self._heard += chunk
        line, _, self._heard = self._heard.partition(b"\n")
        return dict(json.loads(line))

    async def order(self, do: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps({"do": do, **arguments}).encode() + b"\n")

    async def tell(self, do: str, **arguments: Any) -> Any:
        await self.order(do, **arguments)
        answer = await self.hear()
        assert "answer" in answer, answer
        return answer["answer"]

    async def run(self, *argv: str) -> str:
        """Standard output of a command inside, which must succeed."""
        code, out, err = await self.tell("run", argv=argv)
        assert code == 0, err
        return str(out)

    async def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()


@asynccontextmanager
async def agent(
    data_dir: Path, *, kind: str = "auto", prefix: tuple[str, ...] = (), uid: str = ""
) -> AsyncIterator[Agent]:
    """Ends in order when the body does, unless it was killed."""
    command = [*prefix, sys.executable, str(AGENT), str(data_dir), kind, *([uid] if uid else [])]
    async with open_background() as nursery:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "check": False}
        process = await nursery.start(partial(trio.run_process, command, **pipes))
        started = Agent(process)
        hello = await started.hear()
        assert not hello, hello
        yield started
        with trio.fail_after(60):
            await process.stdin.aclose()
            await process.wait()


async def greeting(dial: Any) -> str:
    """What QEMU says on its control port, once it listens and has done with callers who left."""
    with trio.fail_after(60):
        while True:
            with suppress(OSError, AssertionError, trio.BrokenResourceError):
                if word := await dial():
                    return str(word)
            await trio.sleep(0.02)


def reach(address: str, port: int) -> list[str]:
    """A command that connects, prints what it hears and fails when it cannot connect."""
    return ["timeout", "3", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port} && head -c 8 <&3"]


@contextmanager
def serving(word: bytes) -> Iterator[int]:
    """A server on every address of this machine that says a word to each who comes; its port."""
    code = (
        "import socket, sys; s = socket.create_server(('', 0)); print(s.getsockname()[1], flush=True)\n"
        "while True: c = s.accept()[0]; c.sendall(sys.argv[1].encode()); c.close()"
    )
    command = [sys.executable, "-c", code, word.decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


@contextmanager
def world() -> Iterator[dict[str, str]]:
    """Two namespaces: `host`, with three addresses of its own, and `internet`, to which its default route leads."""
    host, internet = (f"ts-{name}-{os.getpid()}" for name in ("host", "inet"))
    plan = f"""
        netns add {host}
        netns add {internet}
        link add ts0 netns {host} type veth peer name ts1 netns {internet}
        -n {host} link set lo up
        -n {host} addr add 198.18.0.2/24 dev ts0
        -n {host} addr add 198.18.0.3/24 dev ts0
        -n {host} addr add 10.9.9.9/32 dev lo
        -n {host} addr add fd00:77::2/64 dev ts0 nodad
        -n {host} addr add fd00:77::3/64 dev ts0 nodad
        -n {host} addr add fd00:99::9/128 dev lo nodad
        -n {host} link set ts0 up
        -n {internet} link set lo up
        -n {internet} addr add 198.18.0.1/24 dev ts1
        -n {internet} addr add 203.0.113.5/32 dev lo
        -n {internet} addr add fd00:77::1/64 dev ts1 nodad
        -n {internet} addr add 2001:db8:5::5/128 dev lo nodad
        -n {internet} link set ts1 up
        -n {host} route add default via 198.18.0.1
        -n {host} route add default via fd00:77::1
    """
    try:
        for line in filter(None, map(str.strip, plan.splitlines())):
            subprocess.run(["ip", *line.split()], check=True, capture_output=True, timeout=10)
        yield {"host": host, "internet": internet}
    finally:
        for name in (host, internet):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=10)


@contextmanager
def lively_world() -> Iterator[str]:
    """A `world` whose host has a service on all its addresses, port 8080, and whose internet answers on port 80."""
    with world() as names, serving_in(names["internet"], "internet", 80), serving_in(names["host"], "MACHINE", 8080):
        yield names["host"]


def open_to_nobody() -> tuple[str, ...]:
    """A prefix that runs a command in a view of this machine where any user may run our Python and open tun devices.

    Elsewhere both are usual; here the interpreter may lie in root's home, and the device be root's.
    """
    ways = {way for path in (Path(sys.executable).resolve(), TOP / "agent") if (way := _way(path))}
    aside = "".join(f"mkdir /media/{n} && mount --bind {way} /media/{n} && " for n, way in enumerate(ways))
    namespaces = "".join(f"mount -t tmpfs -o mode=755 none {wall} && " for wall in {way.parent for way in ways})
    back = "".join(f"mkdir {way} && mount --bind /media/{n} {way} && " for n, way in enumerate(ways))
    script = f"""mount --make-rprivate / && mount -t tmpfs none /media && {aside} {namespaces} {back}
        mknod -m 666 /media/tun c 10 200 && mount --bind /media/tun /dev/net/tun &&
        umount -l /media && exec "$@" """
    return ("unshare", "--mount", "sh", "-c", script, "sh")


def _way(path: Path) -> Path | None:
    """The folder on the way to `path` that lies behind the first one which nobody may pass; None if none is closed."""
    wall = blocking_directory(path.parent, 65534, {65534})
    return None if wall is None else wall / path.relative_to(wall).parts[0]


def without(capability: str) -> tuple[str, ...]:
    """A prefix that takes a power from root, as containers do."""
    return ("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}")


def in_namespace(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", name)


@contextmanager
def serving_in(name: str, word: str, port: int) -> Iterator[None]:
    """As `serving`, in a network namespace."""
    code = (
        "import socket, sys\n"
        "s = socket.create_server(('::', int(sys.argv[2])), family=socket.AF_INET6, dualstack_ipv6=True)\n"
        "print(flush=True)\n"
        "while True: c = s.accept()[0]; c.sendall(sys.argv[1].encode()); c.close()"
    )
    command = [*in_namespace(name), sys.executable, "-c", code, word, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield
        finally:
            server.kill()


def exists(*paths: Path | str) -> list[Path]:
    """Those that exist, dangling links too."""
    return [path for path in map(Path, paths) if path.is_symlink() or path.exists()]


def running(command: str) -> list[int]:
    """Processes whose command line ends so."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    found = []
    for file in Path("/proc").glob("[1-9]*/cmdline"):
        with suppress(OSError):
            if file.read_bytes().endswith(wanted):
                found.append(int(file.parent.name))
    return found


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def long_folder(above: Path) -> Path:
    """A folder below one that nobody else may pass, by a path too long for a unix socket."""
    folder = above / "locked" / ("long-" * 20) / ("longer-" * 20)
    folder.mkdir(parents=True)
    (above / "locked").chmod(0o700)
    assert len(str(folder)) > socket.MSG_OOB + 200
    return folder
