"""What a virtio-serial port carries by itself, and QEMU's guest agent: a plain QEMU with `tiny` and one more port."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.guest.machine import Machine, run_machine

MIB = 1 << 20
BARE = 32 * MIB
PORT = "bare.0"
BLOCKS = f"bs=64k count={BARE >> 16}"
AGENT_FILE = 1 * MIB
AGENT_PIECE = 48 << 10
"""Larger pieces make it fail."""

INTO = {
    "port": f"dd of=/dev/null {BLOCKS} iflag=fullblock",
    "file": f"rm -f /root/bare; dd of=/root/bare {BLOCKS} iflag=fullblock",
    "least": "python3 -S -E /root/least.py in",
}
"""What takes BARE bytes from descriptor 0: nothing is kept; a file; a file whose bytes are checked by CRC-32."""
OUT = {
    "port": f"dd if=/dev/zero {BLOCKS}",
    "file": "dd if=/root/bare bs=64k",
    "least": "python3 -S -E /root/least.py out",
}
"""What writes as much on descriptor 1."""
LEAST = f"""
import os, sys
from zlib import crc32
view = memoryview(bytearray(131072))
pages = [view[at : at + 4096] for at in range(0, len(view), 4096)]
left, total = {BARE}, 0
into = sys.argv[1] == "in"
file = os.open("/root/bare", os.O_RDWR | os.O_CREAT | (os.O_TRUNC if into else 0))
os.write(1, b"R")
if not into:
    os.read(0, 1)
while left:
    size = os.readv(0, pages) if into else os.readv(file, [view])
    total = crc32(view[:size], total)
    done = 0
    while done < size:
        done += os.write(file if into else 1, view[done:size])
    left -= size
"""


@dataclass(frozen=True, slots=True)
class AgentFiles:
    """MiB/s of QEMU's guest agent."""

    written: float
    read: float


class BarePort:
    """A port, and a shell of the guest that has it open as descriptor 3."""

    def __init__(self, machine: Machine, stream: trio.SocketStream) -> None:
        self._machine, self._stream = machine, stream
        self._lines = 0

    async def start(self) -> None:
        """Give the guest the program that does the least."""
        # Without the link that the guest makes of a port, the shell would make a file of that name.
        await self._type(
            f"while [ ! -c /dev/virtio-ports/{PORT} ]; do sleep 0.1; done; exec 3<>/dev/virtio-ports/{PORT}"
        )
        content = LEAST.encode()
        await self._type(f"echo -n R >&3; dd of=/root/least.py bs=1 count={len(content)} <&3; echo -n D >&3")
        await self._expect(b"R")
        await self._stream.send_all(content)
        await self._expect(b"D")

    async def into(self, command: str) -> float:
        """MiB/s until a command of INTO has all."""
        first = "" if command == "least" else "echo -n R >&3; "
        await self._type(f"{first}({INTO[command]}) <&3 1>&3 2>/dev/null; echo -n D >&3")
        await self._expect(b"R")
        began = time.perf_counter()
        await self._stream.send_all(bytes(BARE))
        await self._expect(b"D")
        return BARE / MIB / (time.perf_counter() - began)

    async def out(self, command: str) -> float:
        """MiB/s of a command of OUT."""
        first = "" if command == "least" else "echo -n R >&3; dd bs=1 count=1 of=/dev/null <&3; "
        await self._type(f"{first}({OUT[command]}) <&3 1>&3 2>/dev/null")
        await self._expect(b"R")
        began, left = time.perf_counter(), BARE
        await self._stream.send_all(b"G")
        while left > 0:
            left -= len(await self._stream.receive_some(MIB))
        return BARE / MIB / (time.perf_counter() - began)

    async def agent(self) -> AgentFiles:
        """MiB/s of QEMU's guest agent."""
        name, piece = "/root/by-agent", b64encode(bytes(AGENT_PIECE)).decode()
        rates = []
        for mode in ("w", "r"):
            handle = await self._machine.agent("guest-file-open", path=name, mode=mode)
            began = time.perf_counter()
            for _ in range(AGENT_FILE // AGENT_PIECE):
                if mode == "w":
                    await self._machine.agent("guest-file-write", handle=handle, **{"buf-b64": piece})
                else:
                    await self._machine.agent("guest-file-read", handle=handle, count=AGENT_PIECE)
            rates.append(AGENT_FILE / MIB / (time.perf_counter() - began))
            await self._machine.agent("guest-file-close", handle=handle)
        return AgentFiles(written=rates[0], read=rates[1])

    async def _type(self, line: str) -> None:
        self._lines += 1
        await self._machine.type(f": {self._lines}; {line}\n", expect=f": {self._lines};")

    async def _expect(self, word: bytes) -> None:
        received = await self._stream.receive_some(1)
        if received != word:
            raise RuntimeError(f"the guest says {received!r}, not {word!r}")


@asynccontextmanager
async def open_bare_port(folder: Path, disk: Path) -> AsyncIterator[BarePort]:
    """A guest that does nothing but what its port is asked for."""
    async with run_machine(folder, disk, memory=256, ports=[PORT]) as machine:
        await machine.wait_for("login:", within=180)
        await machine.type("root\n", expect="# ")
        async with await trio.open_unix_socket(machine.folder / f"{PORT}.sock") as stream:
            port = BarePort(machine, stream)
            with trio.fail_after(60):
                await port.start()
            yield port
