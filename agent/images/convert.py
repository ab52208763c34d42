"""Makes a raw disk of a qcow2 file from outside: looked at first, in a sandbox, by the tools of QEMU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import msgspec
import trio
from msgspec import Meta

from ...protocols.errors import InsufficientResources, InvalidRequest
from .disks import check_size, damaged, refuse_features
from .qcow2 import data_end, is_extended, table_ends

Answer = TypeVar("Answer", bound=msgspec.Struct)

LOOK_TIMEOUT = 60.0
CHECK_TIMEOUT = 600.0
CONVERT_TIMEOUT = 3600.0


class RunTool(Protocol):
    """Runs a program of QEMU as the user that runs the guests, with no network and bounded in memory and time."""

    async def __call__(self, argv: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
        """Raises: DeadlineExceeded when the program takes longer than `timeout` seconds: it is killed then."""
        ...


class _Data(msgspec.Struct):
    data_file: str | None = msgspec.field(default=None, name="data-file")


class _Specific(msgspec.Struct):
    data: _Data = msgspec.field(default_factory=_Data)


class _Info(msgspec.Struct):
    """What `qemu-img info` says, as far as it matters here."""

    size: Annotated[int, Meta(ge=0)] = msgspec.field(name="virtual-size")
    backing_file: str | None = msgspec.field(default=None, name="backing-filename")
    encrypted: bool = False
    specific: _Specific = msgspec.field(default_factory=_Specific, name="format-specific")


class _Checked(msgspec.Struct):
    """What `qemu-img check` says; `end` is where the last cluster ends that is in use."""

    end: Annotated[int, Meta(ge=0)] = msgspec.field(name="image-end-offset")
    compressed: int = msgspec.field(default=0, name="compressed-clusters")


class _Measure(msgspec.Struct):
    required: Annotated[int, Meta(ge=0)]


async def inspect_qcow2(run_tool: RunTool, path: Path, max_size: int) -> int:
    """The size of the disk in bytes. Raises: InvalidRequest for one that is damaged or is more than its own bytes."""
    output = await _qemu_img(run_tool, ["info", "--output=json", "-f", "qcow2", str(path)], LOOK_TIMEOUT)
    info = _decode(output, _Info)
    refuse_features(
        backing_file=info.backing_file is not None,
        data_file=info.specific.data.data_file is not None,
        encrypted=info.encrypted,
    )
    check_size(info.size, max_size)
    return info.size


async def check_qcow2(run_tool: RunTool, path: Path) -> None:
    """Compare the tables of a qcow2 file with its clusters and its length. Raises: InvalidRequest for a damaged one."""
    argv = ["check", "--output=json", "-f", "qcow2", str(path)]
    # 3 says that clusters belong to nothing: space is lost, no data.
    found = _decode(await _qemu_img(run_tool, argv, CHECK_TIMEOUT, accepted=(0, 3)), _Checked)
    length, head = await trio.to_thread.run_sync(_length_and_head, path)
    if length >= found.end:
        return
    # QEMU reads zeros behind the end of the file, and may unpack a cluster that was cut into something else.
    if length < await trio.to_thread.run_sync(data_end, path):
        raise damaged(f"the file ends after {length} bytes, before its data: it was cut off")
    if found.compressed or is_extended(head):
        return
    # QEMU itself leaves the last cluster short where it is a table that was written only as far as it is filled.
    if not any(found.end - size < table_end <= length for table_end, size in table_ends(head)):
        raise damaged(f"the file ends after {length} bytes, its last cluster at {found.end}: it was cut off")


def _length_and_head(path: Path) -> tuple[int, bytes]:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, file.read(512)


async def check_room(run_tool: RunTool, disk: Sequence[str], free: int) -> None:
    """`disk` is what `whole_disk` or `overlay_disk` says of it.

    Raises: InsufficientResources when the data would not fit: a few bytes of qcow2 can stand for any amount.
    """
    # Of a raw file it tells the whole size, holes included; of a qcow2 one what the data takes, with some tables.
    argv = ["measure", "--output=json", "-O", "qcow2", *disk]
    required = _decode(await _qemu_img(run_tool, argv, LOOK_TIMEOUT), _Measure).required
    if required > free:
        raise InsufficientResources(f"the disk holds {required} bytes of data, and the node has room for {free}")


def whole_disk(path: Path) -> list[str]:
    """Arguments of qemu-img for a qcow2 file that stands alone."""
    return ["-f", "qcow2", str(path)]


def overlay_disk(overlays: Sequence[Path], base: Path) -> list[str]:
    """Arguments of qemu-img for overlays, the active one first: all are named here, whatever their headers say."""
    layers: dict[str, object] = {}
    for depth, file in enumerate((*overlays, base)):
        prefix = "backing." * depth
        layers |= {f"{prefix}driver": "raw" if file == base else "qcow2", f"{prefix}file.filename": file}
    return _image_options(layers)


def exported_disk(socket: Path, name: str) -> list[str]:
    """Arguments of qemu-img for a raw disk that is served by NBD."""
    server = {"file.server.type": "unix", "file.server.path": socket, "file.export": name}
    return _image_options({"driver": "raw", "file.driver": "nbd", **server})


def _image_options(options: Mapping[str, object]) -> list[str]:
    return ["--image-opts", ",".join(f"{key}={str(value).replace(',', ',,')}" for key, value in options.items())]


async def convert_qcow2(run_tool: RunTool, disk: Sequence[str], target: Path) -> None:
    """Write the disk as a sparse raw file to `target`, which is there and may be written by the user of the tools."""
    argv = ["convert", "-q", "-O", "raw", "-S", "4k", *disk, str(target)]
    await _qemu_img(run_tool, argv, CONVERT_TIMEOUT)


async def _qemu_img(run_tool: RunTool, arguments: list[str], timeout: float, accepted: Sequence[int] = (0,)) -> bytes:
    done = await run_tool(["qemu-img", *arguments], timeout=timeout)
    if done.returncode in accepted:
        return done.stdout
    text = done.stderr.decode(errors="replace").strip()
    if "No space left on device" in text or "File too large" in text:
        raise InsufficientResources("the disk of the node is full: no room for the image; free some and try again")
    # The tool's sentence names our files: only what stands after them is the caller's business.
    raise damaged(f"qemu-img cannot read it ({text.rpartition(chr(39) + ': ')[2][:200] or done.returncode})")


def _decode(output: bytes, kind: type[Answer]) -> Answer:
    try:
        return msgspec.json.decode(output, type=kind)
    except (msgspec.MsgspecError, ValueError):
        raise InvalidRequest("qemu-img says nothing that can be understood about this disk") from None
