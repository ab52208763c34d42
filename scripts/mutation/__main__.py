"""`scripts/mutate`: runs an area's tests on each mutant in a copy of the checkout, and reports the survivors."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.mutation.areas import AREAS, Area
from scripts.mutation.mutants import Mutant, mutants

TOP = Path(__file__).resolve().parents[2]
# What every run imports and no mutant is in: loaded once, in the process that the runs are forked from.
PRELOADED = (
    "pytest", "trio", "msgspec", "msgpack", "structlog", "cryptography.hazmat.primitives",
    "joserfc.jws", "httpx", "blake3",
)  # fmt: skip


def main() -> int:
    """Exit 1 when a mutant survived."""
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__)
    parser.add_argument("areas", nargs="*", help="the areas to look at; all of them by default")
    parser.add_argument("--list", action="store_true", help="name the areas")
    parser.add_argument("--sample", type=int, help="so many mutants of each area, chosen by chance")
    parser.add_argument("--seed", type=int, default=0, help="of that chance")
    parser.add_argument("--minutes", type=float, help="begin no mutant of an area after so many minutes")
    parser.add_argument("--only", default="", help="only files whose path has this in it")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(AREAS))
        return 0
    if unknown := sorted({*asked.areas} - {*AREAS}):
        parser.error(f"no area is called {unknown[0]}; there are: {', '.join(AREAS)}")
    for module in PRELOADED:
        __import__(module)
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy(Path(folder) / "copy")
        for name in asked.areas or AREAS:
            survived += _look_at(name, AREAS[name], copy, asked)
    return 1 if survived else 0


def _copy(target: Path) -> Path:
    """The files that git knows, links as links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TOP,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if os.path.lexists(TOP / name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TOP / name, target / name, follow_symlinks=False)
    return target


def _look_at(name: str, area: Area, copy: Path, asked: argparse.Namespace) -> int:
    tests = area.test_paths(copy)
    began = time.monotonic()
    if _run(copy, tests, 600) != 0:
        raise SystemExit(f"{name}: its tests fail without any change")
    baseline = time.monotonic() - began
    found = [each for each in _mutants(copy, area) if asked.only in str(each[0])]
    if asked.sample or asked.minutes:
        size = min(asked.sample or len(found), len(found))
        found = random.Random(asked.seed).sample(found, size)  # noqa: S311 - it must repeat
    survivors = seen = 0
    for path, mutant in found:
        if asked.minutes and time.monotonic() - began > asked.minutes * 60:
            break
        seen += 1
        if _survives(copy, path, mutant, tests, 10 + 5 * baseline):
            survivors += 1
            print(f"{path}:{mutant.line}: {_short(mutant.before)}  ->  {_short(mutant.after)}", flush=True)
    print(f"{name}: {seen} of {len(found)} mutants, {seen - survivors} killed, {survivors} survived", flush=True)
    return survivors


def _short(code: str) -> str:
    line = " ".join(code.split())
    return line if len(line) <= 100 else f"{line[:97]}..."


def _mutants(copy: Path, area: Area) -> Iterator[tuple[Path, Mutant]]:
    for path in area.paths(copy):
        for mutant in mutants((copy / path).read_text()):
            yield path, mutant


def _survives(copy: Path, path: Path, mutant: Mutant, tests: list[str], timeout: float) -> bool:
    whole = (copy / path).read_text()
    (copy / path).write_text(mutant.text)
    try:
        return _run(copy, tests, timeout) == 0
    finally:
        (copy / path).write_text(whole)


def _run(copy: Path, tests: list[str], timeout: float) -> int:
    """The exit code of pytest in a fork of its own, 1 when it took longer than `timeout` seconds."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _test(copy, tests)
        finally:  # whatever a mutant raises: this process must not run on as its parent
            os._exit(code)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 1


def _test(copy: Path, tests: list[str]) -> int:
    import pytest

    os.setsid()
    os.chdir(copy)
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(quiet, descriptor)
    sys.path = [str(copy), *(path for path in sys.path if path not in {"", str(TOP)})]
    sys.dont_write_bytecode = True
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not system"]
    return int(pytest.main([*options, *tests]))


if __name__ == "__main__":
    sys.exit(main())
