"""The guest program as a process, on a channel that a test cuts where it likes, and the agent's end of it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
import trio.testing

from twinshare.agent.guest.channel import ChannelPort
from twinshare.agent.guest.vm_guest import VmGuest
from twinshare.agent.hypervisor.memory.guest import stream_pair
from twinshare.agent.hypervisor.memory.guest_process import GuestProcess
from twinshare.protocols.guest import ExecRequest

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)
UNLIMITED = 1 << 62

Limits = Callable[[], tuple[int, int]]
"""How many bytes the next connection carries to the guest and from it before it is cut."""


class CutChannel:
    """Connections to one guest program, each of which is cut when it has carried so many bytes in one direction."""

    def __init__(self, program: GuestProcess, nursery: trio.Nursery, limits: Limits) -> None:
        self._program, self._nursery, self._limits = program, nursery, limits
        self.cuts = 0
        self.on_cut = trio.Event()

    async def dial(self) -> trio.SocketStream:
        near, far = stream_pair()
        self._nursery.start_soon(self._connect, far)
        return near

    async def is_open(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self._program.runs

    async def _connect(self, agent: trio.SocketStream) -> None:
        guest, port = stream_pair()
        to_guest, to_agent = self._limits()
        async with agent, guest, port, trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, port)
            nursery.start_soon(_carry, agent, guest, to_guest, nursery.cancel_scope)
            nursery.start_soon(_carry, guest, agent, to_agent, nursery.cancel_scope)
        self.cuts += 1
        self.on_cut.set()
        self.on_cut = trio.Event()

    async def _serve(self, port: trio.SocketStream) -> None:
        with suppress(*_BROKEN):
            await self._program.serve(port)


async def _carry(source: trio.SocketStream, sink: trio.SocketStream, limit: int, scope: trio.CancelScope) -> None:
    with suppress(*_BROKEN):
        while limit > 0 and (data := await source.receive_some(min(limit, 64 << 10))):
            await sink.send_all(data)
            limit -= len(data)
    scope.cancel()


def random_cuts(chance: random.Random, longest: int) -> Limits:
    """Limits anywhere: in the greeting, in a head, in content; the guest's are shorter, for it has no zeros to send."""
    return lambda: (chance.randrange(longest), chance.randrange(longest))


@asynccontextmanager
async def open_lab(folder: Path, limits: Limits = lambda: (UNLIMITED, UNLIMITED)) -> AsyncIterator[CutChannel]:
    """The program as a process of this machine, and the channel to it."""
    program = GuestProcess(folder / "guest")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(program.run)
        yield CutChannel(program, nursery, limits)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_guest(directory: Path, channel: CutChannel) -> AsyncIterator[VmGuest]:
    """One life of the agent's end: what a former one has left in `directory` goes on."""
    guest = VmGuest("one", directory)
    await trio.to_thread.run_sync(guest.load)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.run, ChannelPort(channel.dial, channel.is_open), "one")
        await trio.testing.wait_all_tasks_blocked()
        yield guest
        nursery.cancel_scope.cancel()


def command(*words: str) -> ExecRequest:
    """A command whose input stays open for who attaches."""
    return ExecRequest(command=list(words), detach=True, interactive=True)
