"""What a node stands on, as it is configured: the enclosure, the hypervisor in it, the image store beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from .config import Config
from .hypervisor.absent import AbsentHypervisor
from .hypervisor.fake import open_fake_hypervisor
from .hypervisor.port import Hypervisor
from .images.fake import FakeImageStore
from .images.port import ImageStore

FAKE = "fake://"


@dataclass(frozen=True, slots=True)
class Ground:
    """`vms` and `images` lie where the hypervisor reaches them; `own` gives a path to the user it runs as."""

    hypervisor: Hypervisor
    images: ImageStore
    vms: Path
    scratch: Path
    own: Callable[[Path], None]
    admits: Callable[[trio.SocketStream], bool]
    guest_pids: Callable[[], Iterable[int]]
    problems: Sequence[str]


@asynccontextmanager
async def open_ground(data_dir: Path, config: Config) -> AsyncIterator[Ground]:
    """The ground that `hypervisor.uri` names; without a usable hypervisor the agent runs and says what is missing."""
    uri = config.hypervisor.uri
    vms, scratch = data_dir / "vms", data_dir / "scratch"
    for directory in (vms, scratch):
        directory.mkdir(mode=0o711, exist_ok=True)
    if uri.startswith(FAKE):
        file = Path(uri.removeprefix(FAKE)) if uri != FAKE else None
        async with open_fake_hypervisor(path=file) as fake:
            yield _ground(fake, data_dir)
        return
    yield _ground(AbsentHypervisor("no hypervisor was found"), data_dir)


def _ground(hypervisor: Hypervisor, data_dir: Path) -> Ground:
    return Ground(
        hypervisor=hypervisor,
        images=FakeImageStore(),
        vms=data_dir / "vms",
        scratch=data_dir / "scratch",
        own=lambda path: None,  # noqa: ARG005
        admits=lambda stream: True,  # noqa: ARG005
        guest_pids=list,
        problems=(),
    )
