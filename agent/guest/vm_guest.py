"""The guest of one VM: its channel while it runs, its sessions, and what it has reported."""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path

import msgspec
import structlog
import trio

from ...protocols.errors import (
    DeadlineExceeded,
    GuestRefused,
    GuestUnreachable,
    Overloaded,
    SessionNotFound,
    TwinshareError,
    Unsupported,
    WrongState,
)
from ...protocols.guest import ExecRequest, GuestReport, ListeningPort
from ...protocols.guest_channel import WINDOW, ReportMessage
from .agent_exec import AgentCommand, Ask, start_by_agent
from .channel import ENDED, ChannelPort, GuestChannel
from .output_log import OutputLog
from .session import HostedSession, SessionRecord, load_sessions, shown_command
from .stream import ChannelStream

log = structlog.get_logger(__name__)

MAX_RUNNING = 128
"""Sessions of one VM at once."""
MAX_KEPT = 512
"""Sessions of one VM that are kept, those that have ended included."""
KEPT_FOR = 600.0
"""Seconds for which a session is kept after its end."""
READY_WITHIN = 10.0
"""Seconds for which a guest is waited for that has booted."""
AGENT_AFTER = 1.0
"""The same, where the guest agent can be asked instead."""
BY_AGENT = 0
"""The number of a session that has no stream of the channel."""
OPEN_WITHIN = 30.0
"""Seconds for a guest to open a stream."""
MISSING = (
    "no program answers on the guest channel of VM '{name}': the guest is still booting, or its image has no python3 or"
    " no cloud-init that could start it; docs/guests.md has the command that starts it by hand"
)


class VmGuest:
    """One VM's guest. `run` serves it for one run of the VM, from its start to its end."""

    def __init__(self, id: str, directory: Path, ask_agent: Ask | None = None) -> None:
        self.id = id
        self._directory, self._ask_agent = directory, ask_agent
        self.sessions: dict[str, HostedSession] = {}
        self.channel: GuestChannel | None = None
        self.name = ""
        self.report: ReportMessage | None = None
        self.on_report = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._boots_until = 0.0

    def load(self) -> None:
        """Read what a former life of the agent has left. Blocking."""
        self.sessions = {session.record.id: session for session in load_sessions(self._directory)}

    # --- the run of the VM ---

    async def run(self, port: ChannelPort, name: str, boots_within: float = 0.0) -> None:
        """Keep the channel, and every session on it, until it is cancelled.

        The guest may take `boots_within` seconds from now to answer.
        """
        self.name = name
        self._boots_until = trio.current_time() + boots_within
        channel = GuestChannel(name, port, self._reported)
        try:
            async with trio.open_nursery() as nursery:
                self.channel, self._nursery = channel, nursery
                for session in self.running():
                    if session.record.number == BY_AGENT:
                        await session.lose(
                            GuestUnreachable("the node was restarted before the guest agent had answered")
                        )
                    else:
                        self._serve(session, channel, nursery)
                await channel.run()
                await trio.sleep_forever()
        finally:
            self.channel = self._nursery = self.report = None
            channel.end(WrongState(f"VM '{name}' has stopped, or its node is stopping", vm=name))

    def running(self) -> list[HostedSession]:
        return [session for session in self.sessions.values() if not session.ended]

    async def lose_running(self, why: TwinshareError) -> None:
        """The machine in which the sessions ran is gone."""
        for session in self.running():
            await session.lose(why)

    def _serve(self, session: HostedSession, channel: GuestChannel, nursery: trio.Nursery) -> None:
        stream = channel.add(session.connect(channel.flush))
        nursery.start_soon(self._pump, session, channel, stream)

    async def _pump(self, session: HostedSession, channel: GuestChannel, stream: ChannelStream) -> None:
        """One session, to its end. A session whose pump is cancelled goes on in the guest."""
        try:
            await session.pump(stream)
        except GuestUnreachable as error:
            await session.lose(error)
        channel.drop(stream)

    def _reported(self, report: ReportMessage) -> None:
        self.report = report
        changed, self.on_report = self.on_report, trio.Event()
        changed.set()

    def listens(self, port: int) -> bool:
        """Whether the guest reports that something listens on a port, be it on one of its addresses only."""
        return self.report is not None and any(port == found for found, _ in self.report.listening)

    def view_report(self) -> GuestReport:
        ready = self.channel is not None and self.channel.ready
        booting = self.channel is not None and self.channel.instance is None and self._boot_time_left() > 0
        missing = None if ready else self._missing()
        found = self.report
        if found is None:
            return GuestReport(ready=ready, missing=missing, booting=booting)
        return GuestReport(
            ready=ready,
            missing=missing,
            hostname=found.hostname,
            addresses=found.addresses,
            listening=[ListeningPort(port=port, address=address) for port, address in found.listening],
            host_keys=found.host_keys,
            ssh=found.ssh,
        )

    def _missing(self) -> str:
        """What the guest lacks, and what to do."""
        if self.channel is not None and self.channel.unsupported is not None:
            return self.channel.unsupported
        served_before = self.channel is not None and self.channel.instance is not None
        return ENDED.format(vm=self.name) if served_before else MISSING.format(name=self.name)

    # --- what callers ask for ---

    async def ready_channel(self) -> GuestChannel:
        """The channel once the guest answers. Raises: GuestUnreachable, WrongState."""
        channel = self.channel
        if channel is None:
            raise WrongState("the VM does not run; start it first", vm=self.name)
        with trio.move_on_after(self._ready_within(channel)):
            await channel.wait_ready()
            return channel
        raise GuestUnreachable(self._missing(), vm=self.name)

    def _ready_within(self, channel: GuestChannel) -> float:
        """Seconds to wait for the guest: while it boots, until that should be over."""
        left = self._boot_time_left()
        if channel.instance is None and left > 0:
            return max(left, READY_WITHIN)
        # A guest that has never answered will hardly do so now, and its agent can be asked.
        return AGENT_AFTER if channel.instance is None and self._ask_agent else READY_WITHIN

    def _boot_time_left(self) -> float:
        """Seconds that the guest may still take to boot."""
        return self._boots_until - trio.current_time()

    async def open(self, request: dict[str, object], window: int = WINDOW) -> ChannelStream:
        """Open a stream that ends with this agent; the caller drops it. Raises: GuestUnreachable, WrongState."""
        channel = await self.ready_channel()
        stream = channel.open(request, window)
        try:
            with trio.fail_after(OPEN_WITHIN):
                await stream.wait_opened()
        except trio.TooSlowError:
            channel.drop(stream)
            raise GuestUnreachable(f"the guest of VM '{self.name}' did not answer within {OPEN_WITHIN:g} s") from None
        except BaseException:
            channel.drop(stream)
            raise
        return stream

    def close(self, stream: ChannelStream) -> None:
        """Forget a stream of `open`."""
        if self.channel is not None:
            self.channel.drop(stream)

    async def start_session(self, request: ExecRequest, owner: str) -> HostedSession:
        """Start a command, by the QEMU guest agent if no program in the guest serves the channel.

        Raises: GuestUnreachable, WrongState, Overloaded, InsufficientResources.
        """
        try:
            channel = await self.ready_channel()
        except GuestUnreachable as error:
            return await self._start_by_agent(request, owner, error)
        session = await self._new_session(request, owner, channel.new_number(), channel.instance or b"")
        if self._nursery is None or self.channel is not channel:
            await session.lose(WrongState("the VM has stopped", vm=self.name))
        else:
            self._serve(session, channel, self._nursery)
        await self.expire()
        return session

    async def _start_by_agent(self, request: ExecRequest, owner: str, why: GuestUnreachable) -> HostedSession:
        """Raises: GuestUnreachable, `why` when no agent runs commands; Overloaded, InsufficientResources."""
        if self._ask_agent is None or self._nursery is None:
            raise why
        try:
            command = await start_by_agent(self._ask_agent, request)
        except (Unsupported, GuestRefused, DeadlineExceeded):
            raise why from None
        session = await self._new_session(request, owner, BY_AGENT, b"")
        self._nursery.start_soon(self._wait_for_agent, session, command)
        return session

    async def _wait_for_agent(self, session: HostedSession, command: AgentCommand) -> None:
        try:
            pieces, end = await command.wait()
        except TwinshareError as error:
            await session.lose(error)
        else:
            await session.complete(pieces, end)

    async def _new_session(self, request: ExecRequest, owner: str, number: int, instance: bytes) -> HostedSession:
        """Write down what is known of a session. Raises: Overloaded, InsufficientResources."""
        if len(self.running()) >= MAX_RUNNING:
            raise Overloaded(f"{MAX_RUNNING} sessions of one VM at once are allowed; end some", retry_after=5)
        id = secrets.token_hex(8)
        record = SessionRecord(
            id=id,
            number=number,
            instance=instance,
            owner=owner,
            command=shown_command(request.argv()),
            started_at=time.time(),
            request=None if number == BY_AGENT else msgspec.msgpack.encode(exec_fields(request)),
            user=request.user,
            terminal=request.terminal,
            detached=request.detach,
        )
        session = HostedSession(self._directory, record, OutputLog(self._directory, id, []))
        self.sessions[id] = session
        try:
            await trio.to_thread.run_sync(self._save_first, session)
        except BaseException:
            del self.sessions[id]
            raise
        return session

    def _save_first(self, session: HostedSession) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        session.save()

    def session(self, id: str) -> HostedSession:
        """Raises: SessionNotFound."""
        found = self.sessions.get(id)
        if found is None:
            raise SessionNotFound(f"VM '{self.name}' has no session '{id}'", session=id)
        return found

    async def end_session(self, session: HostedSession) -> None:
        """Kill what runs, and forget the session."""
        if session.stream is not None and self.channel is not None:
            self.channel.drop(session.stream)
            session.stream.fail(GuestUnreachable("the session was ended"))
        if not session.ended:
            await session.lose(GuestUnreachable("the session was ended"))
        self.sessions.pop(session.record.id, None)
        await trio.to_thread.run_sync(session.remove)

    async def expire(self) -> None:
        """Remove the sessions that ended long ago, and the oldest of too many."""
        ended = sorted((s for s in self.sessions.values() if s.ended), key=lambda s: s.record.ended_at or 0.0)
        excess = len(self.sessions) - MAX_KEPT
        for number, session in enumerate(ended):
            age = time.time() - (session.record.ended_at or 0.0)
            if number < excess or not 0 <= age < KEPT_FOR:
                self.sessions.pop(session.record.id, None)
                await trio.to_thread.run_sync(session.remove)

    def remove(self) -> None:
        """Blocking."""
        shutil.rmtree(self._directory, ignore_errors=True)


def exec_fields(request: ExecRequest) -> dict[str, object]:
    """The message that starts a command, without its stream."""
    return {
        "kind": "exec",
        "argv": request.argv(),
        "env": request.environment(),
        "workdir": request.workdir_bytes(),
        "user": request.user,
        "timeout": request.timeout,
        "terminal": request.terminal,
        "columns": request.columns,
        "rows": request.rows,
        "stdin": request.stdin_bytes(),
        "close": not request.interactive,
    }
