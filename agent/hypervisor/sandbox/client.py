"""The agent's client of the sandbox's supervisor: finds it or starts it, asks it for processes and sockets, ends it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import trio

from ....protocols.errors import HypervisorDown
from ...environment import PATH
from . import processes
from .connection import Process, Reply, SupervisorGone, connect, decode, request
from .identity import Identity, blocking_directory
from .location import Record, namespace_pids, socket_path
from .namespaces import SandboxSpec
from .policy import namespaced_spec, namespaces_remedy, plain_spec
from .spawn import finish, program, start
from .supervisor import VERSION

_START_TIMEOUT = 10.0  # seconds for a new supervisor's report, and for a killed one to end


class SupervisorClient:
    """Owns the record of one supervisor. `problems` says what this machine refused."""

    def __init__(self, data_dir: Path, record: Record, identity: Identity, log: int) -> None:
        self.data_dir, self.record, self.identity, self.log = data_dir, record, identity, log
        self.problems: list[str] = []
        self._control: socket.socket | None = None  # while it is open the supervisor does not end by itself
        self._control_lock = trio.Lock()
        self._replacement_lock = trio.Lock()
        self._ended = False

    @property
    def pid(self) -> int:
        return self.record.supervisor[0] if self.record.supervisor else 0

    def save_egress(self, pid: int, default_routes: Iterable[str]) -> None:
        """Record the egress process for the next agent, and the routes that it started with."""
        self.record.egress = (pid, processes.start_time(pid) or 0)
        self.record.default_routes = tuple(sorted(default_routes))
        self.record.save(self.data_dir)

    def save_blocked(self, prefixes: Iterable[str]) -> None:
        """Record the prefixes that are blocked in the sandbox."""
        self.record.blocked = tuple(sorted(prefixes))
        self.record.save(self.data_dir)

    async def open(self, kind: str) -> None:
        """Find the supervisor or start one. Raises: HypervisorDown."""
        if await self._find():
            if self.record.kind != kind != "auto":
                self.problems.append(f"The sandbox stays {self.record.kind} as long as guests run in it.")
            return
        if kind != "plain":
            refusal = await self._try_namespaces()
            if refusal is None:
                return
            sentence = f"This machine refuses private namespaces ({refusal}); {namespaces_remedy()}."
            if kind == "namespaces":
                raise HypervisorDown(f"{sentence} The configuration insists on them.")
            self.problems.append(sentence)
        await self._start_plain()

    async def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        streams: Sequence[int],
        limits: Mapping[str, int],
        bound: bool,
    ) -> Process:
        """Start a process; a `bound` one is killed with its handle. Raises: OSError, HypervisorDown."""
        executable = shutil.which(argv[0], path=PATH)
        if executable is None:
            raise FileNotFoundError(f"{argv[0]} is not installed")
        message = {"do": "launch", "argv": [executable, *argv[1:]], "env": env, "limits": limits, "bound": bound}
        connection, reply, _ = await self._request(message, streams)
        return Process(connection, reply.pid)

    async def create_socket(self, family: int) -> socket.socket:
        """Return a TCP socket of the sandbox's network. Raises: OSError, HypervisorDown."""
        connection, _, [descriptor] = await self._request({"do": "socket", "family": int(family)}, expected=1)
        connection.close()
        created = socket.socket(fileno=descriptor)
        created.setblocking(False)
        return created

    async def attend_egress(self) -> None:
        """Have the supervisor kill the egress process when it ends."""
        if self.record.egress is None:
            return
        with suppress(ProcessLookupError, HypervisorDown):  # a supervisor that ended is replaced at the next request
            pidfd = os.pidfd_open(self.record.egress[0])
            try:
                await self._ask({"do": "attend"}, [pidfd])
            finally:
                os.close(pidfd)

    async def end(self) -> bool:
        """End the supervisor unless a process runs in the sandbox; return whether it ended."""
        if self._control is None:
            return True
        if self.record.kind == "namespaces" and self.pids():
            return False  # also those that a former supervisor started, which this one does not know
        try:
            reply = await self._ask({"do": "end"})
        except (HypervisorDown, OSError):
            reply = Reply(ended=not self.pids())
        if reply.ended:
            self._ended = True
            self.close()
            if self.record.supervisor is not None:
                await _wait_for_end(self.record.supervisor[0])
        return reply.ended

    def close(self) -> None:
        """Close the control connection."""
        if self._control is not None:
            self._control.close()
            self._control = None

    def pids(self) -> frozenset[int]:
        """Return the sandbox's processes without the supervisor."""
        if self.record.kind == "namespaces":
            return namespace_pids(self.record) - {self.pid}
        return processes.descendants(self.pid) if self.pid else frozenset()

    async def _find(self) -> bool:
        """Connect to the supervisor of an earlier agent; return whether it answers."""
        if not processes.alive(self.record.supervisor):
            return False
        try:
            control = await connect(self._address)
        except OSError:
            return False
        with ExitStack() as on_failure, suppress(HypervisorDown, OSError):
            on_failure.enter_context(control)
            reply, _ = await request(control, {"do": "hello"})
            if reply.version == VERSION:
                on_failure.pop_all()
                self._control = control
                return True
        return False

    async def _try_namespaces(self) -> str | None:
        """Start a supervisor in namespaces; return the reason when the kernel refuses."""
        spec = namespaced_spec(self.identity, self.record.path, self.data_dir, self._survivor())
        refusal = await self._start(spec, "namespaces")
        if refusal is None and spec.join is None:
            self.save_blocked(spec.blocked)
        return refusal

    def _survivor(self) -> int | None:
        """Return a process that still runs in namespaces whose supervisor is gone."""
        if self.record.kind != "namespaces" or not self.record.network:
            return None
        owned = (pid for pid in sorted(self.pids()) if processes.owner_of(pid) == self.identity.uid)
        return next(owned, None)

    async def _start_plain(self) -> None:
        identity = self.identity
        if identity.user is not None:
            blocking = blocking_directory(self.data_dir.parent, identity.uid, {identity.gid, *identity.groups})
            if blocking is not None:
                raise HypervisorDown(
                    " ".join(self.problems)
                    + f" Then virtual machines run as user {identity.user}, who may not pass {blocking}: "
                    "start the agent with --data-dir /var/lib/twinshare, or allow it to make namespaces."
                )
            self.data_dir.chmod(0o711)
        refusal = await self._start(plain_spec(identity), "plain")
        if refusal is not None:
            raise HypervisorDown(f"The sandbox for virtual machines cannot be made: {refusal}.")

    async def _start(self, spec: SandboxSpec, kind: str) -> str | None:
        """Start a supervisor and connect to it; return the reason when it cannot be."""
        address = self._address
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(address))
            address.chmod(0o600)
            listener.listen(64)
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                try:
                    os.set_blocking(write_end, True)
                    command = program("supervisor", "main", [json.dumps(spec._asdict())])
                    pid = start(command, output=write_end, errors=self.log, given=listener.fileno())
                finally:
                    os.close(write_end)
                report = await _read_report(read_end)
            finally:
                os.close(read_end)
        if report.error is not None or report.pid == 0:
            await _wait_for_end(pid)
            return report.error or "its first process ended at once; sandbox.log says why"
        await self._replace(pid, kind)
        self._control = await connect(address)
        await self._ask({"do": "hello"})
        return None

    async def _ask(self, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> Reply:
        """Send a request on the control connection. Shielded: a reply left unread would answer the next request."""
        with trio.CancelScope(shield=True):
            async with self._control_lock:
                if self._control is None:
                    raise HypervisorDown("The sandbox is closed.")
                try:
                    reply, _ = await request(self._control, message, descriptors)
                except HypervisorDown:
                    self.close()  # a late reply must not be taken for that of the next request
                    raise
        return reply

    async def _replace(self, pid: int, kind: str) -> None:
        """Record the new supervisor and kill the former one, which may be dead, hung or of another version."""
        former, network = self.record.supervisor, self.record.network
        self.record.kind = kind
        self.record.supervisor = (pid, processes.start_time(pid) or 0)
        self.record.network = processes.network_of(pid) or 0
        if former is not None:
            if processes.alive(former):
                os.kill(former[0], signal.SIGKILL)
            await _wait_for_end(former[0])
        if self.record.network != network:
            self._end_egress()
        self.record.save(self.data_dir)

    def _end_egress(self) -> None:
        """Kill the egress of the former network; `Egress` sees its end and starts a new one."""
        if self.record.egress is not None and processes.alive(self.record.egress):
            os.kill(self.record.egress[0], signal.SIGKILL)
        self.record.egress = None

    async def _request(
        self, message: Mapping[str, object], descriptors: Sequence[int] = (), expected: int = 0
    ) -> tuple[socket.socket, Reply, list[int]]:
        """Send a request on a new connection, which stays open; once more if the supervisor ended meanwhile."""
        for last in (False, True):
            connection = await self._connect()
            try:
                return connection, *await request(connection, message, descriptors, expected)
            except SupervisorGone:
                connection.close()
                if last:
                    raise
            except BaseException:
                connection.close()
                raise
        raise AssertionError  # for the type checker: the loop returns or raises

    async def _connect(self) -> socket.socket:
        """Connect anew; a supervisor that died is replaced, in the same namespaces if a process survived in them.

        Raises: HypervisorDown.
        """
        if self._ended:
            raise HypervisorDown("The sandbox was taken down.")
        with suppress(OSError):
            return await connect(self._address)
        async with self._replacement_lock:
            with suppress(OSError):
                return await connect(self._address)
            self.close()
            await self.open(self.record.kind)
            await self.attend_egress()
            try:
                return await connect(self._address)
            except OSError as error:
                raise HypervisorDown(f"The sandbox's supervisor cannot be reached: {error}.") from error

    @property
    def _address(self) -> Path:
        return socket_path(self.record)


async def _read_report(read_end: int) -> Reply:
    data = b""
    with trio.move_on_after(_START_TIMEOUT):
        await trio.lowlevel.wait_readable(read_end)
        data = os.read(read_end, 65536)
    return decode(data) if data else Reply()


async def _wait_for_end(pid: int) -> None:
    """Wait until a process that we started has ended; one of an earlier agent is reaped by another."""
    with trio.move_on_after(_START_TIMEOUT, shield=True):
        await finish(pid)
