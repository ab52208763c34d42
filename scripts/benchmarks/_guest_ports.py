"""What a virtio-serial port carries by itself, and QEMU's guest agent: a plain QEMU with `tiny` and one more port."""

from __future__ import annotations

import time
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.guest.machine import Machine, run_machine

MIB = 1 << 20
BARE = 32 * MIB
PORT = "bare.0"
AGENT_FILE = 1 * MIB
AGENT_PIECE = 48 << 10
"""Larger pieces make it fail."""


@dataclass(frozen=True, slots=True)
class AgentFiles:
    """MiB/s of QEMU's guest agent."""

    written: float
    read: float


async def raw_rates(folder: Path, disk: Path) -> tuple[float, float, AgentFiles]:
    """MiB/s that the port carries into a guest and out of it, and the guest agent's."""
    async with run_machine(folder, disk, memory=256, ports=[PORT]) as machine:
        await machine.wait_for("login:", within=180)
        await machine.type("root\n", expect="# ")
        out = await _out(machine)
        into = await _into(machine)
        return into, out, await _agent(machine)


async def _out(machine: Machine) -> float:
    stream = await trio.open_unix_socket(machine.folder / f"{PORT}.sock")
    async with stream:
        with trio.fail_after(120):
            # Without the link that the guest makes of a port, `dd` would make a file of that name.
            await machine.type(f"while [ ! -c /dev/virtio-ports/{PORT} ]; do sleep 0.1; done\n", expect="done")
            await machine.type(f"dd if=/dev/zero of=/dev/virtio-ports/{PORT} bs=64k &\n", expect="dd if")
            await stream.receive_some(MIB)
            left, began = BARE, time.perf_counter()
            while left > 0:
                left -= len(await stream.receive_some(MIB))
            taken = time.perf_counter() - began
            await machine.type("kill $!\n", expect="kill")
            with trio.move_on_after(1):
                while await stream.receive_some(MIB):
                    pass
    return BARE / MIB / taken


async def _into(machine: Machine) -> float:
    stream = await trio.open_unix_socket(machine.folder / f"{PORT}.sock")
    async with stream:
        with trio.fail_after(120):
            await machine.type(f"cat /dev/virtio-ports/{PORT} >/dev/null &\n", expect="cat /dev")
            began = time.perf_counter()
            await stream.send_all(bytes(BARE))  # but for what the socket and QEMU hold
            return BARE / MIB / (time.perf_counter() - began)


async def _agent(machine: Machine) -> AgentFiles:
    name, piece = "/root/by-agent", b64encode(bytes(AGENT_PIECE)).decode()
    rates = []
    with trio.fail_after(120):
        for mode in ("w", "r"):
            handle = await machine.agent("guest-file-open", path=name, mode=mode)
            began = time.perf_counter()
            for _ in range(AGENT_FILE // AGENT_PIECE):
                if mode == "w":
                    await machine.agent("guest-file-write", handle=handle, **{"buf-b64": piece})
                else:
                    await machine.agent("guest-file-read", handle=handle, count=AGENT_PIECE)
            rates.append(AGENT_FILE / MIB / (time.perf_counter() - began))
            await machine.agent("guest-file-close", handle=handle)
    return AgentFiles(written=rates[0], read=rates[1])
