"""Opens a node's backends as configured: the sandbox, the hypervisor in it, the image store and the image exchange."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from ..protocols.errors import DeadlineExceeded, HypervisorDown
from .config import Config, ConfigError, HypervisorConfig, ImagesConfig
from .environment import make_directory, tool_environment
from .home import HomeError
from .hypervisor.absent import AbsentHypervisor
from .hypervisor.open import open_hypervisor
from .hypervisor.port import Hypervisor
from .hypervisor.sandbox.location import DirectoryInUse
from .hypervisor.sandbox.sandbox import Sandbox, open_sandbox
from .images.catalogue import CatalogueError
from .images.convert import RunTool
from .images.exchange import open_image_exchange
from .images.port import ImageExchange
from .images.store import DiskImageStore, open_image_store
from .sockets import far_socket, is_own_program

log = structlog.get_logger(__name__)

# Limits of a tool that reads a foreign disk: bytes of memory, seconds of CPU.
_TOOL_LIMITS = ("prlimit", "--as=1073741824", "--cpu=600", "--core=0", "--")


@dataclass(frozen=True, slots=True)
class Backends:
    """`vms` is the VMs' folder as the hypervisor sees it; `chown` gives a path to the user that it runs as."""

    hypervisor: Hypervisor
    images: DiskImageStore
    exchange: ImageExchange
    vms: Path
    scratch: Path
    chown: Callable[[Path], None]
    guest_pids: Callable[[], Iterable[int]]
    problems: Callable[[], Sequence[str]]

    async def admits(self, stream: trio.SocketStream) -> bool:
        """Return whether a loopback connection may see a guest's screen: of this node's user alone, as with REST."""
        far = far_socket(stream.socket.getpeername()[:2], stream.socket.getsockname()[:2])
        return far is not None and await is_own_program(far, self.guest_pids())


@asynccontextmanager
async def open_backends(data_dir: Path, config: Config) -> AsyncIterator[Backends]:
    """Open what `hypervisor.uri` names; without a hypervisor the agent runs, and VM calls say what is missing."""
    for name in ("vms", "scratch"):
        make_directory(data_dir / name, 0o711)
    async with AsyncExitStack() as stack:
        hypervisor, sandbox = await _open_hypervisor(stack, data_dir, config.hypervisor)
        root = sandbox.path if sandbox else data_dir
        images = await stack.enter_async_context(
            open_image_store(
                root / "images",
                run_tool=_tools_in(sandbox) if sandbox else _run_tool,
                own=partial(_fchown, sandbox.user) if sandbox and sandbox.user else _keep_owner,
                max_size=config.images.max_size,
            )
        )
        exchange = await _open_exchange(stack, images, config.images)
        yield Backends(
            hypervisor=hypervisor,
            images=images,
            exchange=exchange,
            vms=root / "vms",
            scratch=data_dir / "scratch",
            chown=sandbox.chown if sandbox else lambda path: None,
            guest_pids=sandbox.network_pids if sandbox else list,
            problems=lambda: [*(sandbox.problems if sandbox else ()), *images.problems],
        )


async def _open_hypervisor(
    stack: AsyncExitStack, data_dir: Path, config: HypervisorConfig
) -> tuple[Hypervisor, Sandbox | None]:
    """Open the hypervisor, and for a private libvirt its sandbox. What is missing becomes an AbsentHypervisor."""
    sandbox = None
    try:
        if not config.uri:
            opening_sandbox = open_sandbox(data_dir, kind=config.sandbox, user=config.user)
            sandbox = await stack.enter_async_context(opening_sandbox)
        opening = open_hypervisor(config.uri, sandbox=sandbox, accelerator=config.accelerator, required=False)
        return await stack.enter_async_context(opening), sandbox
    except DirectoryInUse as error:
        raise HomeError(str(error)) from None
    except HypervisorDown as error:
        log.warning("no hypervisor", error=error.message)
        return AbsentHypervisor(error.message), sandbox
    except ValueError as error:
        raise ConfigError(f"hypervisor.uri: {error}") from None


async def _open_exchange(stack: AsyncExitStack, store: DiskImageStore, config: ImagesConfig) -> ImageExchange:
    catalogues = [Path(config.catalogue)] if config.catalogue else []
    try:
        return await stack.enter_async_context(
            open_image_exchange(
                store,
                registries=config.registries,
                catalogues=catalogues,
                default=config.default_registry,
                proxy=config.proxy,
            )
        )
    except CatalogueError as error:
        raise ConfigError(f"images.catalogue: {error}") from None


def _keep_owner(descriptor: int) -> None:
    """Everything runs as the agent's own user."""


def _fchown(user: str, descriptor: int) -> None:
    account = pwd.getpwnam(user)
    os.fchown(descriptor, account.pw_uid, account.pw_gid)


def _tools_in(sandbox: Sandbox) -> RunTool:
    async def run(argv: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
        return await sandbox.run(argv, timeout=timeout)

    return run


async def _run_tool(argv: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
    """Run a tool as this user, within limits. Raises: DeadlineExceeded."""
    with trio.move_on_after(timeout):
        command = [*_TOOL_LIMITS, *argv]
        return await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env=tool_environment()
        )
    raise DeadlineExceeded(f"{argv[0]} did not finish within {timeout:g} s and was stopped")
