"""Imports that are killed: run as a program, so that it can fork before any thread exists.

The first life of a store is killed with SIGKILL at one moment of an import, for every moment there is: a part of the
content, a change of a file or of a name, a transaction. The second looks at what is there, imports again and looks
again. Prints one JSON line a pair of lives.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from tests.images.stores import disk_store
from twinshare.agent.database import Database
from twinshare.agent.images.contract_samples import quiet, raw_disk
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.errors import ImageExists

FILE_EVENTS: Final = {"open", "os.rename", "os.remove", "os.chmod", "os.chown", "os.truncate", "os.link"}
OLD, NEW = raw_disk(1), raw_disk(2, 3 << 19)
PART: Final = 100_000


class Moments:
    """Kills this process at the moment of a number, once `armed`."""

    def __init__(self, folder: Path, last: int) -> None:
        self.armed = False
        self._folder, self._last, self._seen = str(folder), last, 0

    def pass_one(self) -> None:
        if self.armed:
            self._seen += 1
            if self._seen == self._last:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Count changes of files in the folder, and transactions, from both of their sides."""
        transact = Database.transact

        async def counted(database: Database, work: Callable[..., Any]) -> Any:
            self.pass_one()
            result = await transact(database, work)
            self.pass_one()
            return result

        Database.transact = counted  # type: ignore[assignment,method-assign]  # of this forked process alone

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if event in FILE_EVENTS and (isinstance(arguments[0], int) or self._folder in str(arguments[0])):
                self.pass_one()

        sys.addaudithook(audit)


async def content(disk: bytes, moments: Moments) -> AsyncIterator[bytes]:
    for start in range(0, len(disk), PART):
        moments.pass_one()
        yield disk[start : start + PART]
    moments.pass_one()


def as_qcow2(folder: Path, disk: bytes) -> bytes:
    raw, made = folder.with_suffix(".raw"), folder.with_suffix(".qcow2")
    raw.write_bytes(disk)
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, made], check=True)
    return made.read_bytes()


async def first_life(folder: Path, disk: bytes, moments: Moments, *, replace: bool) -> None:
    async with disk_store(folder) as store:
        if replace:
            await store.add_image("it", content(OLD, moments), report=quiet)
        moments.armed = True
        await store.add_image("it", content(disk, moments), report=quiet, replace=replace)
        moments.armed = False


def seen(folder: Path, store: DiskImageStore, names: list[tuple[str, int]]) -> dict[str, Any]:
    return {
        "names": names,
        "files": {kind: len(list((folder / kind).iterdir())) for kind in ("raw", "idx", "partial")},
        "problems": list(store.problems),
    }


async def second_life(folder: Path, disk: bytes, moments: Moments, *, replace: bool) -> dict[str, Any]:
    async def names() -> list[tuple[str, int]]:
        return [(image.name, image.size) for image in await store.list_images()]

    async with disk_store(folder) as store:
        first = seen(folder, store, await names())
        with contextlib.suppress(ImageExists):
            await store.add_image("it", content(disk, moments), report=quiet, replace=replace)
        then = seen(folder, store, await names())
        whole = store.base_path((await store.get_image("it")).digest).read_bytes() == NEW
    return {"first": first, "then": then, "whole": whole}


def forked(work: Callable[[], object]) -> int:
    """Do it in a child process; return the signal that ended it, or its exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            sys.stdout.flush()
            os._exit(0)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def life(folder: Path, disk: bytes, number: int, *, replace: bool) -> None:
    moments = Moments(folder, number)
    moments.watch()
    trio.run(lambda: first_life(folder, disk, moments, replace=replace))


def look(folder: Path, disk: bytes, number: int, *, replace: bool) -> None:
    found = trio.run(lambda: second_life(folder, disk, Moments(folder, 0), replace=replace))
    print(json.dumps({"number": number, "replace": replace, **found}))


def kill_once(folder: Path, disk: bytes, number: int, *, replace: bool) -> bool:
    """Kill the first life at the moment of this number and look; return whether there was such a moment."""
    code = forked(lambda: life(folder, disk, number, replace=replace))
    if code == 0:
        return False
    if code != -signal.SIGKILL or forked(lambda: look(folder, disk, number, replace=replace)):
        raise SystemExit(f"{folder.name}: the first life ended with {code}")
    return True


def main(root: Path) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    for name, disk, replace in (
        ("raw", NEW, False),
        ("again", NEW, True),
        ("qcow2", as_qcow2(root / "source", NEW), False),
    ):
        for number in itertools.count(1):
            if not kill_once(root / f"{name}-{number}", disk, number, replace=replace):
                break


if __name__ == "__main__":
    main(Path(sys.argv[1]))
