"""The part of the hypervisor port's contract that is about streams to a guest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import trio

from ...protocols.errors import TwinshareError, Unsupported, WrongState
from .port import DomainPlan, GuestStreams, Hypervisor


@contextmanager
def refused(*kinds: type[TwinshareError]) -> Iterator[None]:
    """Check that the body raises one of these errors."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"none of {[kind.__name__ for kind in kinds]} was raised")


async def _guest_port_is_dialled(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    if not isinstance(hypervisor, GuestStreams):
        return
    await hypervisor.define(plan)
    with refused(WrongState):
        await hypervisor.dial_guest(plan.id, 80)
    for network in ("default", "isolated"):
        await hypervisor.define(replace(plan, network=network))
        await hypervisor.start(plan.id)
        for _again in range(2):
            try:
                stream = await hypervisor.dial_guest(plan.id, 9)
            except (OSError, Unsupported):
                continue
            await stream.aclose()  # a guest behind QEMU's own NAT: that accepts at once, and closes later
        await hypervisor.destroy(plan.id)


async def _screen_is_dialled(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    if not isinstance(hypervisor, GuestStreams):
        return
    await hypervisor.define(plan)
    with refused(WrongState):
        await hypervisor.dial_screen(plan.id)
    await hypervisor.start(plan.id)
    try:
        stream = await hypervisor.dial_screen(plan.id)
    except (OSError, Unsupported):
        return  # a driver without QEMU
    async with stream:
        assert (await stream.receive_some(12)).startswith(b"RFB 003.")


async def _is_cut_by_destroy(hypervisor: Hypervisor, plan: DomainPlan, stream: trio.SocketStream) -> None:
    """A stream to a guest ends when the domain is forced off."""
    async with stream:
        await hypervisor.destroy(plan.id)
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some(1 << 16):
                pass


async def _channel_is_dialled(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    if not isinstance(hypervisor, GuestStreams):
        return
    await hypervisor.define(plan)
    with refused(WrongState):
        await hypervisor.dial_channel(plan.id)
    with refused(WrongState):
        await hypervisor.channel_is_open(plan.id)
    await hypervisor.start(plan.id)
    for _again in range(2):
        try:
            stream = await hypervisor.dial_channel(plan.id)
        except (OSError, Unsupported):
            return  # a driver without QEMU
        async with stream:
            await stream.send_all(b"is anybody there?")
            assert await hypervisor.channel_is_open(plan.id) in {True, False}
    await _is_cut_by_destroy(hypervisor, plan, await hypervisor.dial_channel(plan.id))


async def _console_is_dialled(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    if not isinstance(hypervisor, GuestStreams):
        return
    await hypervisor.define(plan)
    with refused(WrongState):
        await hypervisor.dial_console(plan.id)
    await hypervisor.start(plan.id)
    for _again in range(2):
        try:
            stream = await hypervisor.dial_console(plan.id)
        except (OSError, Unsupported):
            return  # a driver without QEMU
        async with stream:
            await stream.send_all(b"hello\r")
            said = await stream.receive_some(1 << 16)
            assert said
            for _moment in range(500):  # it is written a moment after it is sent
                if said in (plan.directory / "tty.log").read_bytes():
                    break
                await trio.sleep(0.01)
            else:
                raise AssertionError("what the console said is not in its log")
    await _is_cut_by_destroy(hypervisor, plan, await hypervisor.dial_console(plan.id))


STREAM_CHECKS = (_guest_port_is_dialled, _screen_is_dialled, _console_is_dialled, _channel_is_dialled)
