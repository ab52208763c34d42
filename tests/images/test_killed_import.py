"""kill -9 at every moment of an import: the image is there whole or not at all, and importing again ends well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[2]


def check_whole(seen: dict[str, Any]) -> None:
    """No file without an image, no image without its files."""
    images = len(seen["names"])
    assert (seen["files"], seen["problems"]) == ({"raw": images, "idx": 2 * images, "partial": 0}, [])


@pytest.mark.system
def test_every_moment_of_an_import(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.images.import_lives", str(tmp_path)],
        capture_output=True, text=True, timeout=400, check=False, cwd=TOP,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    pairs = [json.loads(line) for line in done.stdout.splitlines()]
    for pair in pairs:
        before = [["it", 1 << 20]] if pair["replace"] else []
        after = [["it", 3 << 19], *([["", 1 << 20]] if pair["replace"] else [])]
        assert pair["first"]["names"] in (before, after), pair
        assert pair["then"]["names"] == after, pair
        assert pair["whole"], pair
        check_whole(pair["first"])
        check_whole(pair["then"])
    ends = [len(pair["first"]["names"]) > pair["replace"] for pair in pairs]
    assert min(ends.count(True), ends.count(False)) > 10, "it was killed before and after it was there"
