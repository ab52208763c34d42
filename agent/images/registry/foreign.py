"""The disks of others: Meda's and Lume's parts, the disk in a containerDisk, turned into one stream of disk bytes.

What is read here was fetched and checked before. Names in it are never paths. All of it is blocking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ....protocols.errors import InvalidRequest, RegistryFailed
from ..disks import check_size, detect_packing
from ..tar import TarRefused, file_in_folder, open_tar
from ..unpack import unpack

STEP = 1 << 20
_ZEROS = bytes(STEP)


def joined(parts: Sequence[Path]) -> Iterator[bytes]:
    """Files one after another, as Meda cuts a disk."""
    for part in parts:
        with part.open("rb") as file:
            while data := file.read(STEP):
                yield data


def placed(parts: Sequence[tuple[int, Path]], max_size: int) -> Iterator[bytes]:
    """Compressed files that say where they begin, as Lume cuts a disk; what lies between them is zeros.

    Raises: RegistryFailed when they overlap, InvalidRequest beyond `max_size` bytes.
    """
    position = 0
    for offset, part in parts:
        check_size(offset + 1, max_size)
        if offset < position:
            raise RegistryFailed("the image's parts overlap")
        while position < offset:
            count = min(STEP, offset - position)
            position += count
            yield _ZEROS[:count]
        for data in unpacked(part):
            position += len(data)
            check_size(position, max_size)
            yield data


def unpacked(path: Path) -> Iterator[bytes]:
    """The plain bytes of a file that may be compressed."""
    with path.open("rb") as file:
        packing = detect_packing(file.read(16))
        file.seek(0)
        yield from unpack(file.read, packing)


def disk_of_container(layers: Sequence[Path], max_size: int) -> Iterator[bytes]:
    """The one file below `disk/` in the layers of a containerDisk; the last layer that has one counts.

    A layer has at most twice `max_size` bytes. Raises: InvalidRequest when there is none, RegistryFailed.
    """
    for layer in reversed(layers):
        found = False
        for data in _disk_in(layer, 2 * max_size):
            found = True
            yield data
        if found:
            return
    raise InvalidRequest("this is a container's image, not a virtual machine's: it has no file below disk/")


def _disk_in(layer: Path, max_size: int) -> Iterator[bytes]:
    try:
        with open_tar(unpacked(layer), max_size=max_size) as archive:
            content = file_in_folder(archive, "disk")
            while content is not None and (data := content.read(STEP)):
                yield data
    except TarRefused as error:
        raise RegistryFailed(f"the image's layer cannot be read: {error}") from None
