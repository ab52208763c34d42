"""What a node stands on, as it is configured: the enclosure, the hypervisor in it, the image store beside it."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from ..protocols.errors import DeadlineExceeded
from .config import Config
from .hypervisor.absent import AbsentHypervisor
from .hypervisor.fake import open_fake_hypervisor
from .hypervisor.port import Hypervisor
from .images.port import ImageStore
from .images.store import open_image_store
from .sockets import far_socket, is_own_program

FAKE = "fake://"


@dataclass(frozen=True, slots=True)
class Ground:
    """`vms` and `images` lie where the hypervisor reaches them; `own` gives a path to the user it runs as."""

    hypervisor: Hypervisor
    images: ImageStore
    vms: Path
    scratch: Path
    own: Callable[[Path], None]
    guest_pids: Callable[[], Iterable[int]]
    problems: Sequence[str]

    async def admits(self, stream: trio.SocketStream) -> bool:
        """Whether a loopback connection may see a guest's screen: this node's own user alone, as with REST."""
        far = far_socket(stream.socket.getpeername()[:2], stream.socket.getsockname()[:2])
        return far is not None and await is_own_program(far, self.guest_pids())


@asynccontextmanager
async def open_ground(data_dir: Path, config: Config) -> AsyncIterator[Ground]:
    """The ground that `hypervisor.uri` names; without a usable hypervisor the agent runs and says what is missing."""
    for name in ("vms", "scratch"):
        (data_dir / name).mkdir(mode=0o711, exist_ok=True)
    uri = config.hypervisor.uri
    async with AsyncExitStack() as stack:
        if uri.startswith(FAKE):
            file = Path(uri.removeprefix(FAKE)) if uri != FAKE else None
            hypervisor: Hypervisor = await stack.enter_async_context(open_fake_hypervisor(path=file))
        else:
            hypervisor = AbsentHypervisor("no hypervisor was found")
        images = await stack.enter_async_context(
            open_image_store(data_dir / "images", run_tool=_run_tool, own=_keep_owner, max_size=config.images.max_size)
        )
        yield Ground(
            hypervisor=hypervisor,
            images=images,
            vms=data_dir / "vms",
            scratch=data_dir / "scratch",
            own=lambda path: None,  # noqa: ARG005
            guest_pids=list,
            problems=(),
        )


def _keep_owner(descriptor: int) -> None:
    """Everything is run by this very user."""


async def _run_tool(argv: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
    """Run a tool as this user. Raises: DeadlineExceeded."""
    with trio.move_on_after(timeout):
        return await trio.run_process(list(argv), capture_stdout=True, capture_stderr=True, check=False)
    raise DeadlineExceeded(f"{argv[0]} took longer than {timeout} s")
