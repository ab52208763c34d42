"""Writes an image to a registry: packs first, each only if it is not there, then the index, and the manifest last."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import trio

from ....protocols.errors import ImageDamaged
from ....protocols.image import Image
from ....protocols.operation import Progress
from ....protocols.reference import Reference
from ...files import discard, disk_errors_named
from ..index import BadIndexError, ChunkIndex
from ..parallel import each
from ..port import Report
from ..store import DiskImageStore
from .client import RegistryClient, Repository, once
from .manifest import (
    ARTIFACT,
    CONFIG,
    CREATED,
    DIGEST_LABEL,
    INDEX_LAYER,
    PACK_LAYER,
    SIZE_LABEL,
    TITLE,
    Descriptor,
    ImageConfig,
    Manifest,
    sha256,
)
from .packs import Pack, Packer, PackFile

# One pack is sent while the next is made.
AT_ONCE = 2
STEP = 1 << 20


async def push_image(
    store: DiskImageStore, client: RegistryClient, image: Image, target: Reference, report: Report
) -> str:
    """Push a local image under the name `target`; the digest of its manifest.

    A push that broke off is begun anew, and what the registry has by then is not sent again.
    Raises: ImageDamaged when the local disk is not what its index says; RegistryFailed, InsufficientResources.
    """
    repository = Repository.of(target.registry, target.name)
    index = await trio.to_thread.run_sync(_read_index, store, image)
    push = _Push(client, repository, _neighbours(store, target), index, report)
    with disk_errors_named("the packs of the image"):
        layers = await push.write_layers(store.base_path(image.digest), store.partials)
    manifest = Manifest(
        artifact_type=ARTIFACT,
        config=await push.write_small(CONFIG, _config(image).encode()),
        layers=layers,
        annotations={CREATED: image.created_at.isoformat(), TITLE: target.name},
    )
    return await client.put_manifest(repository, target.tag, manifest)


def _read_index(store: DiskImageStore, image: Image) -> ChunkIndex:
    """Blocking. Raises: ImageDamaged."""
    try:
        index = ChunkIndex.read(store.repository.index_path(image.digest))
    except (OSError, BadIndexError):
        raise ImageDamaged(
            f"the index of {image.digest} cannot be read; `twinshare image fsck` makes it anew"
        ) from None
    if index.digest != image.digest:
        raise ImageDamaged(f"the index of {image.digest} is another one's; `twinshare image fsck` makes it anew")
    return index


def _neighbours(store: DiskImageStore, target: Reference) -> Sequence[str]:
    """Other repositories of the same registry that may have the same blobs."""
    names = [name.name for name in store.repository.tags.names if name.registry == target.registry]
    return list(dict.fromkeys(name for name in names if name != target.name))[:3]


def _config(image: Image) -> ImageConfig:
    labels = {**image.labels, DIGEST_LABEL: image.digest, SIZE_LABEL: str(image.size)}
    return ImageConfig(created=image.created_at.isoformat(), config=ImageConfig.Config(labels=labels))


class _Push:
    def __init__(
        self,
        client: RegistryClient,
        repository: Repository,
        neighbours: Sequence[str],
        index: ChunkIndex,
        report: Report,
    ) -> None:
        self._client = client
        self._repository = repository
        self._neighbours = neighbours
        self._index = index
        self._report = report
        self._sent = 0
        self._known = 0

    async def write_layers(self, disk: Path, scratch: Path) -> list[Descriptor]:
        """Make and send the packs of a disk, and then the index layer, whose descriptor is the first."""
        made: dict[int, Descriptor] = {}
        fds: set[int] = set()

        def new_file() -> int:
            fd, name = tempfile.mkstemp(dir=scratch)
            fds.add(fd)
            discard(Path(name))  # it goes with the agent, however that ends
            return fd

        async def send(numbered: tuple[int, Pack]) -> None:
            number, pack = numbered
            kind = PACK_LAYER if number else INDEX_LAYER
            made[number] = Descriptor(media_type=kind, digest=pack.digest, size=pack.size)
            await self._send(pack)
            fds.discard(pack.fd)
            os.close(pack.fd)

        try:
            source = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
            fds.add(source)
            packer = Packer(source, self._index, new_file, folder=scratch)
            async with aclosing(_made(packer)) as packs:
                await each(packs, send, at_once=AT_ONCE)
            await send((0, await trio.to_thread.run_sync(_index_layer, packer, new_file)))
        except FileNotFoundError:
            raise ImageDamaged("the disk of the image is missing; remove the image and add it again") from None
        finally:
            for fd in fds:
                os.close(fd)
        return [made[number] for number in sorted(made)]

    async def write_small(self, media_type: str, content: bytes) -> Descriptor:
        """Send a blob that is in memory."""
        digest = sha256(content)
        await self._client.put_blob(self._repository, digest, len(content), once(content))
        return Descriptor(media_type=media_type, digest=digest, size=len(content))

    async def _send(self, pack: Pack) -> None:
        async def content() -> AsyncIterator[bytes]:
            for offset in range(0, pack.size, STEP):
                yield await trio.to_thread.run_sync(os.pread, pack.fd, min(STEP, pack.size - offset), offset)

        if await self._client.put_blob(self._repository, pack.digest, pack.size, content, self._neighbours):
            self._sent += pack.size
        else:
            self._known += pack.size
        message = f"sent; {self._known} bytes were there already" if self._known else "sent"
        self._report(Progress(done=self._sent + self._known, unit="bytes", message=message))


async def _made(packer: Packer) -> AsyncGenerator[tuple[int, Pack], None]:
    """The packs with their numbers from 1 on, each made while the one before is sent."""
    packs, number = packer.packs(), 1
    try:
        while (pack := await trio.to_thread.run_sync(next, packs, None)) is not None:
            yield number, pack
            number += 1
    except BadIndexError as error:
        raise ImageDamaged(f"the disk of the image is damaged: {error}") from None


def _index_layer(packer: Packer, new_file: Callable[[], int]) -> Pack:
    file = PackFile(new_file())
    for part in packer.layout().encoded():
        file.write(part)
    return file.finish()
