"""The keeper of an enclosure as the agent sees it: found again or started, asked for processes and sockets, ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from ....protocols.errors import HypervisorDown
from ..inside.keeper import VERSION
from ..inside.walls import Walls
from . import place, processes
from .design import Identity, behind_walls, without_walls
from .line import KeeperLeft, Process, Reply, ask, connect, decode
from .refusal import remedy
from .start import PATH, finish, program, start

_PATIENCE = 10.0


class Keeping:
    """One keeper. `problems` tell what could not be had."""

    def __init__(self, data_dir: Path, record: place.Record, identity: Identity, log: int) -> None:
        self.data_dir, self.record, self.identity, self.log = data_dir, record, identity, log
        self.problems: list[str] = []
        self._leash: socket.socket | None = None
        self._lock = trio.Lock()
        self._speech = trio.Lock()
        self._over = False

    @property
    def pid(self) -> int:
        return self.record.keeper[0] if self.record.keeper else 0

    def noted(self, outlet: int, ways: Iterable[str]) -> None:
        """Remember the way out for the next agent, and what it leads to."""
        self.record.outlet = (outlet, processes.started(outlet) or 0)
        self.record.ways = tuple(sorted(ways))
        self.record.save(self.data_dir)

    def fenced(self, prefixes: Iterable[str]) -> None:
        """Remember what is out of reach inside."""
        self.record.fenced = tuple(sorted(prefixes))
        self.record.save(self.data_dir)

    async def open(self, kind: str) -> None:
        """Find the keeper or start one. Raises: HypervisorDown."""
        if await self._find():
            if self.record.kind != kind != "auto":
                self.problems.append(f"The enclosure stays {self.record.kind} as long as guests run in it.")
            return
        if kind != "plain":
            refusal = await self._try_namespaces()
            if refusal is None:
                return
            sentence = f"This machine refuses private namespaces ({refusal}); {remedy()}."
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
        """Raises: OSError when it cannot be executed, HypervisorDown."""
        executable = shutil.which(argv[0], path=PATH)
        if executable is None:
            raise FileNotFoundError(f"{argv[0]} is not installed")
        request = {"do": "launch", "argv": [executable, *argv[1:]], "env": env, "limits": limits, "bound": bound}
        link, reply, _ = await self._request(request, streams)
        return Process(link, reply.pid)

    async def far_socket(self, family: int) -> socket.socket:
        """A TCP socket that belongs to the network inside. Raises: OSError, HypervisorDown."""
        link, _, descriptors = await self._request({"do": "socket", "family": int(family)})
        link.close()
        if len(descriptors) != 1:
            for number in descriptors:
                os.close(number)
            raise HypervisorDown("The keeper of the enclosure gave no socket.")
        far = socket.socket(fileno=descriptors[0])
        far.setblocking(False)
        return far

    async def attend(self) -> None:
        """Have the way out end together with the keeper."""
        if self.record.outlet is None:
            return
        with suppress(ProcessLookupError, HypervisorDown):  # a keeper that left is replaced by who needs it next
            pidfd = os.pidfd_open(self.record.outlet[0])
            try:
                await self._say({"do": "attend"}, [pidfd])
            finally:
                os.close(pidfd)

    async def end(self) -> bool:
        """End the keeper unless a process lives inside; whether it ended."""
        if self._leash is None:
            return True
        try:
            reply = await self._say({"do": "end"})
        except (HypervisorDown, OSError):
            reply = Reply(ended=not self.pids())
        if reply.ended:
            self._over = True
            self.close()
            if self.record.keeper is not None:
                await _buried(self.record.keeper[0])
        return reply.ended

    def close(self) -> None:
        """Let go of the keeper."""
        if self._leash is not None:
            self._leash.close()
            self._leash = None

    def pids(self) -> frozenset[int]:
        """Processes inside, without the keeper."""
        if self.record.kind == "namespaces":
            # Numbers of dead namespaces are given out again: another node's processes may have ours.
            found = processes.in_network(self.record.network) - {self.pid}
            return frozenset(pid for pid in found if processes.has_mounted(pid, f"{self.record.path}/vms"))
        return processes.below(self.pid) if self.pid else frozenset()

    async def _find(self) -> bool:
        """The keeper that an earlier agent left, if it answers."""
        if not processes.alive(self.record.keeper):
            return False
        try:
            leash = await connect(self._address)
        except OSError:
            return False
        try:
            reply, _ = await ask(leash, {"do": "hello"})
        except (HypervisorDown, OSError):
            reply = Reply()
        if reply.version != VERSION:
            leash.close()
            return False
        self._leash = leash
        return True

    async def _try_namespaces(self) -> str | None:
        """Start a keeper behind walls; the reason when the kernel refuses."""
        walls = behind_walls(self.identity, self.record.path, self.data_dir, self._survivor())
        refusal = await self._start(walls, "namespaces")
        if refusal is None and walls.join is None:
            self.fenced(walls.fence)
        return refusal

    def _survivor(self) -> int | None:
        """A process that still lives in namespaces whose keeper is gone."""
        if self.record.kind != "namespaces" or not self.record.network:
            return None
        owned = (pid for pid in sorted(self.pids()) if processes.owner_of(pid) == self.identity.uid)
        return next(owned, None)

    async def _start_plain(self) -> None:
        identity = self.identity
        if identity.user is not None:
            wall = place.barrier(self.data_dir.parent, identity.uid, {identity.gid, *identity.groups})
            if wall is not None:
                raise HypervisorDown(
                    " ".join(self.problems)
                    + f" Then virtual machines run as user {identity.user}, who may not pass {wall}: "
                    "start the agent with --data-dir /var/lib/twinshare, or allow it to make namespaces."
                )
            self.data_dir.chmod(0o711)
        refusal = await self._start(without_walls(identity), "plain")
        if refusal is not None:
            raise HypervisorDown(f"The enclosure for virtual machines cannot be made: {refusal}.")

    async def _start(self, walls: Walls, kind: str) -> str | None:
        address = self._address
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(address))
            address.chmod(0o600)
            listener.listen(64)
            hearing, speaking = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                os.set_blocking(speaking, True)
                command = program("keeper", [json.dumps(walls._asdict())])
                pid = start(command, output=speaking, errors=self.log, given=listener.fileno())
                os.close(speaking)
                report = await self._hear(hearing)
            finally:
                os.close(hearing)
        if report.error is not None or report.pid == 0:
            await _buried(pid)
            return report.error or "its first process ended at once; enclosure.log says why"
        await self._succeed(pid, kind)
        self._leash = await connect(address)
        await self._say({"do": "hello"})
        return None

    async def _say(self, request: Mapping[str, object], given: Sequence[int] = ()) -> Reply:
        """One question on the lasting connection; it is never left half-way, or the next would get its answer."""
        with trio.CancelScope(shield=True):
            async with self._speech:
                if self._leash is None:
                    raise HypervisorDown("The enclosure is closed.")
                try:
                    reply, _ = await ask(self._leash, request, given)
                except HypervisorDown:
                    self.close()  # a late answer must not be taken for that of the next question
                    raise
        return reply

    async def _succeed(self, pid: int, kind: str) -> None:
        """The new keeper takes the place of a former one, which may be dead, deaf or of another version."""
        former, network = self.record.keeper, self.record.network
        self.record.kind = kind
        self.record.keeper = (pid, processes.started(pid) or 0)
        self.record.network = processes.network_of(pid) or 0
        if former is not None:
            if processes.alive(former):
                os.kill(former[0], signal.SIGKILL)
            await _buried(former[0])
        if self.record.network != network:
            self._leave_network()
        self.record.save(self.data_dir)

    def _leave_network(self) -> None:
        """The way out of the former network is of no use any more; it is watched, so a new one follows."""
        if self.record.outlet is not None and processes.alive(self.record.outlet):
            os.kill(self.record.outlet[0], signal.SIGKILL)
        self.record.outlet = None

    async def _hear(self, hearing: int) -> Reply:
        data = b""
        with trio.move_on_after(_PATIENCE):
            await trio.lowlevel.wait_readable(hearing)
            data = os.read(hearing, 65536)
        return decode(data) if data else Reply()

    async def _request(
        self, request: Mapping[str, object], given: Sequence[int] = ()
    ) -> tuple[socket.socket, Reply, list[int]]:
        """Ask on a new connection, which stays open; once more if the keeper was just dying."""
        for last in (False, True):
            link = await self._connect()
            try:
                return link, *await ask(link, request, given)
            except KeeperLeft:
                link.close()
                if last:
                    raise
            except BaseException:
                link.close()
                raise
        raise AssertionError  # for the type checker: the loop returns or raises

    async def _connect(self) -> socket.socket:
        """A new connection; a keeper that died is replaced, in the same namespaces if anything lives there.

        Raises: HypervisorDown.
        """
        if self._over:
            raise HypervisorDown("The enclosure was taken down.")
        with suppress(OSError):
            return await connect(self._address)
        async with self._lock:
            with suppress(OSError):
                return await connect(self._address)
            self.close()
            await self.open(self.record.kind)
            await self.attend()
            try:
                return await connect(self._address)
            except OSError as error:
                raise HypervisorDown(f"The keeper of the enclosure cannot be reached: {error}.") from error

    @property
    def _address(self) -> Path:
        return place.socket_of(self.record)


async def _buried(pid: int) -> None:
    """Wait until a process that we started has ended; one of an earlier agent is reaped by another."""
    with trio.move_on_after(_PATIENCE, shield=True):
        await finish(pid)
