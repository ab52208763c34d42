"""Small file systems for tests that fill them. Needs root."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_mounts = pytest.mark.skipif(os.getuid() != 0, reason="needs root to mount a small disk")

BLOCK = 4096


@contextmanager
def mounted(place: Path, mebibytes: int) -> Iterator[Path]:
    """A new file system of this size at `place`, gone at the end. Skips the test where nothing can be mounted."""
    with _mount(place, ["-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs"]):
        yield place


@contextmanager
def mounted_disk(place: Path, mebibytes: int) -> Iterator[Path]:
    """The same as ext4 in a file with holes: it may be of any size, fills and breaks as a disk does."""
    image = place.with_suffix(".ext4")
    with image.open("wb") as file:
        file.truncate(mebibytes << 20)
    try:
        # Without blocks for root alone and without lazily written tables, which would take room behind our back.
        options = ["-m", "0", "-E", "lazy_itable_init=0", "-O", "^has_journal"]
        subprocess.run(["mkfs.ext4", "-q", *options, str(image)], check=True)
        with _unmounted_everywhere(place.parent), _mount(place, ["-o", "loop,errors=remount-ro", str(image)]):
            yield place
    finally:
        image.unlink()


@contextmanager
def _unmounted_everywhere(folder: Path) -> Iterator[None]:
    """Let what is unmounted in the folder go from the sandboxes as well that started meanwhile, of whatever agent.

    A broken file system that one of them still has is found again, as broken, by the next mount of its file.
    """
    if subprocess.run(["mount", "--bind", folder, folder], check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        subprocess.run(["mount", "--make-shared", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def _mount(place: Path, arguments: list[str]) -> Iterator[None]:
    place.mkdir()
    if subprocess.run(["mount", *arguments, str(place)], check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        # Lazily: a test that failed may hold a file open yet, and no mount may outlive it.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def break_disk(place: Path) -> None:
    """Let the kernel find an error on a `mounted_disk`: from now on nothing can be written, open files included."""
    source = subprocess.run(["findmnt", "-no", "SOURCE", str(place)], check=True, capture_output=True, text=True).stdout
    Path(f"/sys/fs/ext4/{Path(source.strip()).name}/trigger_fs_error").write_text("a test")


def mend_disk(place: Path) -> None:
    """Mount a `mounted_disk` anew, as after a repair. Nobody may have a file of it open."""
    subprocess.run(["umount", str(place)], check=True)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", str(place.with_suffix(".ext4")), str(place)], check=True)


def free(place: Path) -> int:
    """How many bytes can be written yet."""
    room = os.statvfs(place)
    return room.f_bavail * room.f_frsize


def fill(place: Path, leave: int) -> Path:
    """A file that takes all room but about `leave` bytes; the same one again at the next call."""
    filler = place / "filler"
    with filler.open("ab") as file:
        size, step = file.tell(), free(place) - leave
        if step < 0:
            file.truncate(max(0, size + step))
        while step >= BLOCK:
            try:
                os.posix_fallocate(file.fileno(), size, step)
                size += step
            except OSError as error:  # the file system keeps a little for itself, or somebody has written meanwhile
                if error.errno != errno.ENOSPC:
                    raise
                size, step = file.seek(0, os.SEEK_END), step // 2
            step = min(step, free(place) - leave)
    return filler
