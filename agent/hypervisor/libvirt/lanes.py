"""Worker threads for libvirt's blocking calls, in lanes: a guest that hangs costs a thread, never the agent.

A thread that is given up keeps its place in the lane until libvirt lets it go (when its QEMU is destroyed). So the
calls that ask a guest's QEMU go one by one for each VM, and one that was given up bars the next until it is let go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog
import trio

from ....protocols.errors import DeadlineExceeded

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Lane(Enum):
    """(threads, patience in seconds). More than four quick threads only fight for the interpreter's lock.

    QUICK never waits for a guest; SLOW starts guests; MONITOR asks a guest's QEMU; RESCUE pulls plugs.
    """

    QUICK = (4, 10.0)
    SLOW = (16, 120.0)
    MONITOR = (16, 11.0)
    RESCUE = (4, 46.0)


class _Job:
    """What the thread and its caller tell each other. Each writes before it reads: they cannot miss one another."""

    started = given_up = done = False

    def __init__(self) -> None:
        self.asked_at = trio.current_time()
        self.let_go = trio.Event()


class Lanes:
    """`patience` overrides the lanes' own, in seconds."""

    def __init__(self, patience: Mapping[Lane, float] | None = None) -> None:
        self._patience = {lane: lane.value[1] for lane in Lane} | dict(patience or {})
        self._limiters = {lane: trio.CapacityLimiter(lane.value[0]) for lane in Lane}
        self._turns: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._stuck: dict[str, _Job] = {}

    async def run(self, lane: Lane, work: Callable[[], T]) -> T:
        """Run `work` in a thread. Raises: DeadlineExceeded after the lane's patience; the thread is left to itself."""
        try:
            with trio.fail_after(self._patience[lane]):
                return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiters[lane])
        except trio.TooSlowError:
            log.warning("libvirt hangs", lane=lane.name)
            raise DeadlineExceeded("libvirt does not answer; the agent goes on without it") from None

    async def ask_guest(self, id: str, work: Callable[[], T]) -> T:
        """Run `work`, which asks the QEMU of one VM, in the MONITOR lane.

        Raises: DeadlineExceeded when QEMU does not answer, and at once while it owes an answer for that long already.
        """
        try:
            with trio.fail_after(self._patience[Lane.MONITOR]):
                async with self._turns.setdefault(id, trio.Lock()):
                    await self._wait_for_former(id)
                    return await self._ask_in_turn(id, work)
        except trio.TooSlowError:
            log.warning("a guest's QEMU hangs", vm=id)
            raise _hung() from None

    def is_stuck(self, id: str) -> bool:
        """True while a thread that was given up still waits for this VM's QEMU."""
        return id in self._stuck

    async def _wait_for_former(self, id: str) -> None:
        """The caller of the former call may merely have left; or its QEMU hangs."""
        former = self._stuck.get(id)
        if former is not None:
            if trio.current_time() - former.asked_at >= self._patience[Lane.MONITOR]:
                raise _hung()
            await former.let_go.wait()

    async def _ask_in_turn(self, id: str, work: Callable[[], T]) -> T:
        job, token = _Job(), trio.lowlevel.current_trio_token()

        def in_thread() -> T:
            job.started = True
            try:
                if job.given_up:
                    raise _hung()  # to nobody: the caller has left
                return work()
            finally:
                job.done = True
                if job.given_up:
                    _tell(token, self._let_go, id, job)

        try:
            return await trio.to_thread.run_sync(
                in_thread, abandon_on_cancel=True, limiter=self._limiters[Lane.MONITOR]
            )
        finally:
            if not job.done:
                self._stuck[id] = job
                job.given_up = True
                if not job.started or job.done:
                    self._let_go(id, job)  # the thread will do nothing, or ended before it could know

    def _let_go(self, id: str, job: _Job) -> None:
        job.let_go.set()
        if self._stuck.get(id) is job:
            del self._stuck[id]


def _hung() -> DeadlineExceeded:
    return DeadlineExceeded("the VM's QEMU does not answer; a forced stop works all the same")


def _tell(token: trio.lowlevel.TrioToken, function: Callable[[str, _Job], None], id: str, job: _Job) -> None:
    with suppress(trio.RunFinishedError):  # the agent may have left before the thread
        token.run_sync_soon(function, id, job)
