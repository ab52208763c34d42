"""Runs libvirt's blocking calls in worker threads under one limiter a lane: a hung guest costs a thread only.

An abandoned thread holds its limiter token until libvirt returns (when the QEMU is destroyed). So the calls that wait
for a guest's QEMU run one at a time for each VM, and an abandoned one blocks the next until it returns.
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
    """(threads, timeout in seconds). More than four quick threads only contend for the interpreter's lock.

    QUICK never waits for a guest; SLOW starts guests; MONITOR asks a guest's QEMU; RESCUE forces guests off.
    """

    QUICK = (4, 10.0)
    SLOW = (16, 120.0)
    MONITOR = (16, 11.0)
    RESCUE = (4, 46.0)


class _Job:
    """State shared by a thread and its caller. Each writes its flag before it reads the other's: no race is lost."""

    started = abandoned = done = False

    def __init__(self) -> None:
        self.asked_at = trio.current_time()
        self.returned = trio.Event()


class Lanes:
    """`timeouts` overrides the lanes' own, in seconds."""

    def __init__(self, timeouts: Mapping[Lane, float] | None = None) -> None:
        self._timeouts = {lane: lane.value[1] for lane in Lane} | dict(timeouts or {})
        self._limiters = {lane: trio.CapacityLimiter(lane.value[0]) for lane in Lane}
        self._vm_locks: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._stuck: dict[str, _Job] = {}

    async def run(self, lane: Lane, work: Callable[[], T]) -> T:
        """Run `work` in a thread. Raises: DeadlineExceeded after the lane's timeout; the thread is abandoned."""
        try:
            with trio.fail_after(self._timeouts[lane]):
                return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiters[lane])
        except trio.TooSlowError:
            log.warning("libvirt hangs", lane=lane.name)
            raise DeadlineExceeded("libvirt does not answer; the agent goes on without it") from None

    async def ask_guest(self, id: str, work: Callable[[], T]) -> T:
        """Run `work`, which waits for the QEMU of one VM, in the MONITOR lane.

        Raises: DeadlineExceeded when QEMU does not answer, and at once when a former call has waited that long already.
        """
        try:
            with trio.fail_after(self._timeouts[Lane.MONITOR]):
                async with self._vm_locks.setdefault(id, trio.Lock()):
                    await self._wait_for_former(id)
                    return await self._ask_locked(id, work)
        except trio.TooSlowError:
            log.warning("a guest's QEMU hangs", vm=id)
            raise _hung() from None

    def is_stuck(self, id: str) -> bool:
        """Return whether an abandoned thread still waits for this VM's QEMU."""
        return id in self._stuck

    async def _wait_for_former(self, id: str) -> None:
        """Wait for an abandoned call: its caller may have been cancelled, or its QEMU hangs."""
        former = self._stuck.get(id)
        if former is not None:
            if trio.current_time() - former.asked_at >= self._timeouts[Lane.MONITOR]:
                raise _hung()
            await former.returned.wait()

    async def _ask_locked(self, id: str, work: Callable[[], T]) -> T:
        job, token = _Job(), trio.lowlevel.current_trio_token()

        def in_thread() -> T:
            job.started = True
            try:
                if job.abandoned:
                    raise _hung()  # to nobody: the caller was cancelled
                return work()
            finally:
                job.done = True
                if job.abandoned:
                    _run_in_trio(token, self._job_returned, id, job)

        try:
            return await trio.to_thread.run_sync(
                in_thread, abandon_on_cancel=True, limiter=self._limiters[Lane.MONITOR]
            )
        finally:
            if not job.done:
                self._stuck[id] = job
                job.abandoned = True
                if not job.started or job.done:
                    self._job_returned(id, job)  # the thread does nothing, or ended before it saw the flag

    def _job_returned(self, id: str, job: _Job) -> None:
        job.returned.set()
        if self._stuck.get(id) is job:
            del self._stuck[id]


def _hung() -> DeadlineExceeded:
    return DeadlineExceeded("the VM's QEMU does not answer; a forced stop works all the same")


def _run_in_trio(token: trio.lowlevel.TrioToken, function: Callable[[str, _Job], None], id: str, job: _Job) -> None:
    with suppress(trio.RunFinishedError):  # trio may have ended before the thread
        token.run_sync_soon(function, id, job)
