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


@contextmanager
def mounted(place: Path, mebibytes: int) -> Iterator[Path]:
    """A new file system of this size at `place`, gone at the end. Skips the test where nothing can be mounted."""
    place.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(place)]
    if subprocess.run(argv, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        # Lazily: a test that failed may hold a file open yet, and no mount may outlive it.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def free(place: Path) -> int:
    """How many bytes can be written yet."""
    room = os.statvfs(place)
    return room.f_bavail * room.f_frsize


def fill(place: Path, leave: int) -> Path:
    """A file that takes all room but `leave` bytes."""
    filler = place / "filler"
    with filler.open("wb") as file:
        while True:
            try:
                os.posix_fallocate(file.fileno(), 0, free(place) - leave)
                return filler
            except OSError as error:  # somebody has written something since we looked
                if error.errno != errno.ENOSPC:
                    raise
