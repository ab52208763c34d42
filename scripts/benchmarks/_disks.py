"""Disks for the benchmark of images: a file system of real files, the same changed in place, and one built anew.

No root and no loop device: mke2fs fills a file system while it makes it, debugfs writes into one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SIZE = "4G"
DATA = 800 << 20
# As a few packages more would be: so many runs of files that lie together, a small part of all.
ADDED_RUNS, ADDED_PART = 5, 0.03
SOURCES = ("/usr/bin", "/usr/share", "/usr/lib/x86_64-linux-gnu", "/usr/sbin", "/usr/lib")


@dataclass(frozen=True)
class Disks:
    """Raw files of 4 GiB with about 800 MB of data.

    `changed` is `first` with files written into it, `rebuilt` a new file system with the files of both.
    """

    first: Path
    changed: Path
    rebuilt: Path


def make_disks(folder: Path) -> Disks:
    """Blocking; takes some ten seconds and three times 800 MB."""
    old, new = _choose()
    tree = folder / "tree"
    disks = Disks(folder / "first.raw", folder / "changed.raw", folder / "rebuilt.raw")
    _copy(old, tree)
    _make(disks.first, tree)
    subprocess.run(["cp", "--sparse=always", disks.first, disks.changed], check=True)
    script = "\n".join(["mkdir /added", "cd /added", *(f"write {path} {n}" for n, path in enumerate(new))]) + "\n"
    subprocess.run(["debugfs", "-w", "-f", "-", disks.changed], input=script.encode(), check=True, capture_output=True)
    _copy(new, tree)
    _make(disks.rebuilt, tree)
    shutil.rmtree(tree)
    return disks


def _choose() -> tuple[list[Path], list[Path]]:
    """Real files in a fixed order: those of the first disk, and those that come later."""
    found: list[Path] = []
    total = 0
    for path in dict.fromkeys(path for source in SOURCES for path in sorted(_all_files(Path(source)))):
        if path.stat().st_size < 16 << 20 and os.access(path, os.R_OK):
            found.append(path)
            total += path.stat().st_size
        if total >= DATA:
            break
    length = int(len(found) * ADDED_PART / ADDED_RUNS)
    starts = [(2 * run + 1) * len(found) // (2 * ADDED_RUNS) for run in range(ADDED_RUNS)]
    new = [path for start in starts for path in found[start : start + length]]
    later = set(new)
    return [path for path in found if path not in later], new


def _all_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _copy(files: list[Path], target: Path) -> None:
    for path in files:
        place = target / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _make(disk: Path, tree: Path) -> None:
    command = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0",
        "-d",
        str(tree),
        str(disk),
        SIZE,
    ]
    subprocess.run(command, check=True, capture_output=True)
    # The journal and tables were written out as zeros: a disk that was in use has holes there.
    subprocess.run(["fallocate", "--dig-holes", str(disk)], check=True)
