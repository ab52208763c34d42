"""Opens a sandbox, or finds the one of an earlier agent whose guests still run."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from ....protocols.errors import DeadlineExceeded, HypervisorDown
from ...background import open_background
from ...backoff import Backoff
from ...environment import limit_problems, tool_environment
from ..log_size import limit_log
from .client import SupervisorClient
from .connection import Process
from .egress import BlockedRoutes, Egress
from .identity import Identity, sandbox_identity
from .location import PARTS, Record, claim, release, restore_link
from .tools import Pipes, complete

log = structlog.get_logger(__name__)
_MIB = 1 << 20
_RELEASE_TIMEOUT = 10.0
_LINK_INTERVAL = 2.0
_DIAL_TIMEOUT, _FIRST_ATTEMPT, _LONGEST_ATTEMPT = 10.0, 0.02, 0.5
_TOOL_LIMITS = {"open_files": 256, "core": 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolLimits:
    """What a tool may use: memory in MiB, cpu in seconds, `file_size` and each stream of `output` in bytes."""

    memory: int = 1024
    cpu: int = 600
    file_size: int | None = None
    output: int = 4 * _MIB

    def rlimits(self) -> dict[str, int]:
        limits = {**_TOOL_LIMITS, "address_space": self.memory * _MIB, "cpu_seconds": self.cpu}
        return limits if self.file_size is None else {**limits, "file_size": self.file_size}


DEFAULT_LIMITS = ToolLimits()


class Sandbox:
    """`path` names the same files inside and outside; `user` is None when everything runs as the agent's own user."""

    def __init__(self, client: SupervisorClient, egress: Egress | None, blocked_routes: BlockedRoutes | None) -> None:
        self._client, self._egress, self._blocked_routes = client, egress, blocked_routes
        self._spawned: list[Process] = []
        self.path = Path(client.record.path)
        self.user = client.identity.user
        self.kind = client.record.kind
        self._link_problem: str | None = None

    @property
    def problems(self) -> Sequence[str]:
        """A sentence for each thing that the sandbox lacks now."""
        network = [part.problem for part in (self._egress, self._blocked_routes) if part is not None]
        return (*self._client.problems, *limit_problems(), *filter(None, (*network, self._link_problem)))

    @property
    def connected(self) -> bool:
        """Whether guests have a route to the outside network."""
        return self._egress is None or self._egress.is_up()

    async def spawn(self, argv: Sequence[str], *, env: Mapping[str, str], stderr: Path) -> Process:
        """Start a process that outlives the agent, in its own session. Raises: OSError, HypervisorDown."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with ExitStack() as opened:
            log = os.open(stderr, flags, 0o600)
            opened.callback(os.close, log)
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            opened.callback(os.close, null)
            process = await self._client.launch(
                argv, env=env, streams=(null, null, log), limits={"core": 0}, bound=False
            )
        self._spawned.append(process)
        return process

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60,
        limits: ToolLimits = DEFAULT_LIMITS,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a tool to its end, within `limits` and `timeout` seconds.

        It is killed when the call ends, however that ends, and when the agent is killed.
        Raises: DeadlineExceeded, HypervisorDown; TooLarge past `limits.output`; OSError when it cannot start.
        """
        environment = tool_environment(str(self.path / "hypervisor"))
        with trio.move_on_after(timeout):
            async with Pipes() as pipes:
                process = await self._client.launch(
                    argv, env=environment, streams=pipes.child_ends, limits=limits.rlimits(), bound=True
                )
                pipes.close_child_ends()
                return await complete(process, pipes, argv, input or b"", limits.output)
        raise DeadlineExceeded(f"{Path(argv[0]).name} did not finish within {timeout:g} s and was stopped.")

    async def dial(self, port: int, host: str = "127.0.0.1") -> trio.SocketStream:
        """Connect to a TCP port in the sandbox; `host` is an address of its loopback.

        QEMU's listeners queue a single connection; the kernel drops the SYN of a second one and retries after a second.
        We retry with a new socket much sooner: on a loopback the answer comes at once or never.
        Raises: OSError when nothing answers, HypervisorDown.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        timeouts = Backoff(_FIRST_ATTEMPT, _LONGEST_ATTEMPT, jitter=0)
        with trio.move_on_after(_DIAL_TIMEOUT):
            while True:
                connection = trio.socket.from_stdlib_socket(await self._client.create_socket(family))
                try:
                    with trio.move_on_after(timeouts.next()):
                        await connection.connect((host, port))
                        return trio.SocketStream(connection)
                except BaseException:
                    connection.close()
                    raise
                connection.close()
        raise TimeoutError(f"nothing answers on port {port} in the sandbox")

    def chown(self, path: Path) -> None:
        """Give a file or a tree to the sandbox's user. Blocks for as long as the tree is large."""
        self._client.identity.chown(path)

    def pids(self) -> frozenset[int]:
        """Return the sandbox's processes and its egress process. Reads /proc for every process of the machine."""
        return self._client.pids() | self._egress_pids()

    def network_pids(self) -> frozenset[int]:
        """Return the processes whose connections to this host carry guests' traffic, never that of a local user."""
        return self._egress_pids() if self.kind == "namespaces" else self._client.pids()

    def _egress_pids(self) -> frozenset[int]:
        egress = self._egress.process if self._egress is not None else None
        return frozenset({egress[0]} if egress else ())

    async def watch_link(self) -> None:
        """Restore the link at `path` when something removes it (a cleaner of /run or /tmp); never returns."""
        while True:
            await trio.sleep(_LINK_INTERVAL)
            try:
                restored = await trio.to_thread.run_sync(restore_link, self._client.record, self._client.data_dir)
            except OSError as error:
                self._link_problem = f"{self.path} is missing, by which VMs are reached, and cannot be made: {error}."
                continue
            self._link_problem = None
            if restored:
                log.warning("the link to the data directory was missing and is restored", path=str(self.path))

    def detach(self) -> None:
        """Close all handles; spawned processes run on."""
        for process in self._spawned:
            process.close()
        self._client.close()

    async def release(self) -> bool:
        """Take the sandbox down unless a process runs in it; return whether it is gone."""
        if not await self._client.end():
            return False
        if self._egress is not None:
            self._egress.close()
        release(self._client.record, self._client.data_dir)
        return True


@asynccontextmanager
async def open_sandbox(data_dir: Path, *, kind: str = "auto", user: str = "twinshare") -> AsyncIterator[Sandbox]:
    """`kind` is `auto`, `namespaces` or `plain`. On exit it is released, unless guests run on in it.

    `user` is the system user of its processes when the agent is root; otherwise they run as the agent's user.
    Raises: HypervisorDown, with what to do about it; DirectoryInUse for the copy of a directory that is in use.
    """
    data_dir = data_dir.absolute()  # noqa: ASYNC240 - asks the process alone
    identity = await trio.to_thread.run_sync(sandbox_identity, user)
    record = await trio.to_thread.run_sync(_prepare, data_dir, identity)
    log = os.open(data_dir / "sandbox.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        client = SupervisorClient(data_dir, record, identity, log)
        try:
            await client.open(kind)
        except BaseException:
            client.close()
            release(record, data_dir)
            raise
        namespaced = record.kind == "namespaces"
        egress, blocked_routes = (Egress(client), BlockedRoutes(client)) if namespaced else (None, None)
        sandbox = Sandbox(client, egress, blocked_routes)
        try:
            async with open_background() as nursery:
                nursery.start_soon(sandbox.watch_link)
                nursery.start_soon(limit_log, data_dir / "sandbox.log")
                if egress is not None and blocked_routes is not None:
                    for task in (blocked_routes.run, egress.run, egress.follow_routes):
                        nursery.start_soon(task)
                yield sandbox
        finally:
            with trio.move_on_after(_RELEASE_TIMEOUT, shield=True):
                await sandbox.release()
            sandbox.detach()
    finally:
        os.close(log)


def _prepare(data_dir: Path, identity: Identity) -> Record:
    try:
        record = claim(data_dir)
        if identity.user is not None:
            for part in PARTS:  # each may be a link that the owner made, to a larger disk
                os.chown(data_dir / part, identity.uid, identity.gid)
    except OSError as error:
        raise HypervisorDown(
            f"The data directory {data_dir} cannot be prepared for virtual machines: {error}."
        ) from error
    return record
