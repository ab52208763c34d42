"""The last released version as a tree of its own, to be run beside the present one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]
FIRST = "350e4f62a678"
"""Stands for the last release until a tag does: the commit whose forms are in `v1`."""


def released() -> str | None:
    """The newest tag of another commit than this one, else the first version; None where git does not have it."""
    tags = _git("tag", "--list", "v*", "--sort=-creatordate").split()
    head = _git("rev-parse", "HEAD").strip()
    names = [tag for tag in tags if _git("rev-list", "-1", tag).strip() != head] or [FIRST]
    return names[0] if _git("cat-file", "-t", f"{names[0]}^{{commit}}").strip() == "commit" else None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=TOP, capture_output=True, text=True, check=False).stdout


def unpack_release(version: str, target: Path) -> list[str]:
    """Unpack it; returns the command that runs its agent with the packages of this environment."""
    target.mkdir()
    archive = subprocess.run(["git", "archive", version], cwd=TOP, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=target, input=archive, check=True)
    return ["env", "-C", str(target), f"PYTHONPATH={target}", sys.executable, "-m", "twinshare", "agent"]
