"""A plain QEMU process under emulation, with its serial line, its monitor and a port to the guest. No libvirt here."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.ports import free_port

QEMU = "qemu-system-x86_64"


class Machine:
    """A running guest. Sockets lie in `folder`."""

    def __init__(self, folder: Path, http_port: int, process: trio.Process) -> None:
        self.folder = folder
        self.http_port = http_port
        self.process = process

    @property
    def console(self) -> str:
        """What the guest wrote on its serial line so far."""
        return (self.folder / "serial.log").read_text(errors="replace")

    async def wait_for(self, text: str, within: float) -> None:
        """Wait until the serial line has said `text`. Raises: AssertionError with what it said instead."""
        with trio.move_on_after(within):
            while text not in self.console:
                await trio.sleep(0.02)
            return
        raise AssertionError(f"the guest did not say {text!r} within {within} s, but:\n{self.console}")

    async def type(self, text: str, *, expect: str, within: float = 20) -> None:
        """Type on the serial line and stay until it says `expect`: a caller who goes takes unread words along."""
        stream = await _connect(self.folder / "serial.sock")
        async with stream:
            await stream.send_all(text.encode())
            await self.wait_for(expect, within)

    async def monitor(self, command: str, **arguments: Any) -> Any:
        """One QMP command on a connection of its own; what it returns."""
        stream = await _connect(self.folder / "qmp.sock")
        async with stream:
            answers = _lines(stream)
            await anext(answers)
            for execute in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                await stream.send_all(json.dumps(execute).encode())
                while "event" in (answer := await anext(answers)):
                    pass
            await answers.aclose()
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["return"]

    async def agent(self, command: str, **arguments: Any) -> Any:
        """One command to the guest agent; what it returns. The channel is flushed with a token first."""
        stream = await _connect(self.folder / "agent.sock")
        async with stream:
            answers = _lines(stream)
            sync = {"execute": "guest-sync", "arguments": {"id": 4711}}
            await stream.send_all(json.dumps(sync).encode() + b"\n")
            while (await anext(answers)).get("return") != 4711:
                pass
            await stream.send_all(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            answer = await anext(answers)
            await answers.aclose()
        return answer["return"]


@asynccontextmanager
async def run_machine(
    folder: Path, disk: Path, *, seed: Path | None = None, memory: int = 128, ports: Sequence[str] = ()
) -> AsyncIterator[Machine]:
    """Boot `disk`, which is not written to. `memory` in MiB. The process is killed at the end.

    Each of `ports` is a virtio-serial port, with a socket `NAME.sock` here.
    """
    port = free_port()
    argv = [
        QEMU, "-accel", "tcg,tb-size=64", "-machine", "q35", "-m", str(memory), "-nodefaults", "-display", "none",
        "-drive", f"file={disk},format=raw,if=virtio,snapshot=on",
        "-chardev", f"socket,id=serial,path={folder}/serial.sock,server=on,wait=off,logfile={folder}/serial.log",
        "-serial", "chardev:serial",
        "-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off",
        "-nic", f"user,model=virtio-net-pci,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:80",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={folder}/agent.sock,server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
    ]  # fmt: skip
    for name in ports:
        argv += ["-chardev", f"socket,id={name},path={folder}/{name}.sock,server=on,wait=off"]
        argv += ["-device", f"virtserialport,chardev={name},name={name}"]
    if seed is not None:
        argv += ["-drive", f"file={seed},format=raw,if=virtio,readonly=on"]
    (folder / "serial.log").touch()
    async with trio.open_nursery() as nursery:
        process = await nursery.start(trio.run_process, argv)
        try:
            yield Machine(folder, port, process)
        finally:
            nursery.cancel_scope.cancel()


async def _connect(path: Path) -> trio.SocketStream:
    """QEMU makes its sockets soon after its start."""
    with trio.fail_after(60):
        while True:
            try:
                return await trio.open_unix_socket(path)
            except OSError:
                await trio.sleep(0.02)


async def _lines(stream: trio.SocketStream) -> AsyncGenerator[dict[str, Any], None]:
    buffer = b""
    while data := await stream.receive_some(65536):
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            yield json.loads(line)
