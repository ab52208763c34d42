"""What a node stands on, as it is configured: the enclosure, the hypervisor in it, the image store beside it."""

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
from .hypervisor.absent import AbsentHypervisor
from .hypervisor.enclosure import Enclosure, open_enclosure
from .hypervisor.open import open_hypervisor
from .hypervisor.port import Hypervisor
from .images.catalogue import CatalogueError
from .images.convert import RunTool
from .images.exchange import open_image_exchange
from .images.port import ImageExchange
from .images.store import DiskImageStore, open_image_store
from .sockets import far_socket, is_own_program

log = structlog.get_logger(__name__)

# A tool that reads a disk from outside may use no more than this: bytes of memory, seconds of CPU.
_TOOL_LIMITS = ("prlimit", "--as=1073741824", "--cpu=600", "--core=0", "--")


@dataclass(frozen=True, slots=True)
class Ground:
    """`vms` lies where the hypervisor reaches it; `own` gives a path to the user it runs as."""

    hypervisor: Hypervisor
    images: DiskImageStore
    exchange: ImageExchange
    vms: Path
    scratch: Path
    own: Callable[[Path], None]
    guest_pids: Callable[[], Iterable[int]]
    problems: Callable[[], Sequence[str]]

    async def admits(self, stream: trio.SocketStream) -> bool:
        """Whether a loopback connection may see a guest's screen: this node's own user alone, as with REST."""
        far = far_socket(stream.socket.getpeername()[:2], stream.socket.getsockname()[:2])
        return far is not None and await is_own_program(far, self.guest_pids())


@asynccontextmanager
async def open_ground(data_dir: Path, config: Config) -> AsyncIterator[Ground]:
    """The ground that `hypervisor.uri` names; without a usable hypervisor the agent runs and says what is missing."""
    for name in ("vms", "scratch"):
        (data_dir / name).mkdir(mode=0o711, exist_ok=True)
    async with AsyncExitStack() as stack:
        hypervisor, enclosure = await _open_hypervisor(stack, data_dir, config.hypervisor)
        root = enclosure.path if enclosure else data_dir
        images = await stack.enter_async_context(
            open_image_store(
                root / "images",
                run_tool=_inside(enclosure) if enclosure else _run_tool,
                own=partial(_give, enclosure.user) if enclosure and enclosure.user else _keep,
                max_size=config.images.max_size,
            )
        )
        exchange = await _open_exchange(stack, images, config.images)
        yield Ground(
            hypervisor=hypervisor,
            images=images,
            exchange=exchange,
            vms=root / "vms",
            scratch=data_dir / "scratch",
            own=enclosure.own if enclosure else lambda path: None,
            guest_pids=enclosure.carriers if enclosure else list,
            problems=lambda: [*(enclosure.problems if enclosure else ()), *images.problems],
        )


async def _open_hypervisor(
    stack: AsyncExitStack, data_dir: Path, config: HypervisorConfig
) -> tuple[Hypervisor, Enclosure | None]:
    """A private libvirt comes with its enclosure. Whatever is missing becomes a hypervisor that says so."""
    enclosure = None
    try:
        if not config.uri:
            place = open_enclosure(data_dir, kind=config.enclosure, user=config.user)
            enclosure = await stack.enter_async_context(place)
        opening = open_hypervisor(config.uri, place=enclosure, accelerator=config.accelerator)
        return await stack.enter_async_context(opening), enclosure
    except HypervisorDown as error:
        log.warning("no hypervisor", error=error.message)
        return AbsentHypervisor(error.message), enclosure
    except ValueError as error:
        raise ConfigError(f"hypervisor.uri: {error}") from None


async def _open_exchange(stack: AsyncExitStack, store: DiskImageStore, config: ImagesConfig) -> ImageExchange:
    catalogues = [Path(config.catalogue)] if config.catalogue else []
    try:
        return await stack.enter_async_context(
            open_image_exchange(
                store, registries=config.registries, catalogues=catalogues, default=config.default_registry
            )
        )
    except CatalogueError as error:
        raise ConfigError(f"images.catalogue: {error}") from None


def _keep(descriptor: int) -> None:
    """Everything is run by this very user."""


def _give(user: str, descriptor: int) -> None:
    account = pwd.getpwnam(user)
    os.fchown(descriptor, account.pw_uid, account.pw_gid)


def _inside(enclosure: Enclosure) -> RunTool:
    async def run(argv: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
        return await enclosure.run(argv, timeout=timeout)

    return run


async def _run_tool(argv: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
    """Run a tool as this user, within limits. Raises: DeadlineExceeded."""
    with trio.move_on_after(timeout):
        command = [*_TOOL_LIMITS, *argv]
        return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    raise DeadlineExceeded(f"{argv[0]} did not finish within {timeout:g} s and was stopped")
