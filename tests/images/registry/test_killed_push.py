"""kill -9 at every moment of a push: what the registry shows is whole, and pushing again sends only the rest."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.images.registry.servers import docker_registry, needs_registry

TOP = Path(__file__).parents[3]


@needs_registry
@pytest.mark.system
async def test_every_moment_of_a_push(tmp_path: Path) -> None:
    async with docker_registry(tmp_path / "registry") as registry:
        argv = [sys.executable, "-m", "tests.images.registry.push_lives", str(tmp_path / "images"), registry.host]
        run = partial(trio.run_process, cwd=TOP, capture_stdout=True, capture_stderr=True, check=False)
        with trio.fail_after(400):
            done = await run(argv)
    assert done.returncode == 0, done.stderr[-2000:]
    pairs = [json.loads(line) for line in done.stdout.splitlines()]
    everything = {blob for pair in pairs for blob in (*pair["first"]["blobs"], *pair["sent"])}
    for pair in pairs:
        first, then, digest = pair["first"], pair["then"], pair["digest"]
        assert pair["left"] == 0, pair
        assert (first["manifest"] in ("", digest), first["missing"]) == (True, []), pair
        # What was under way when the process ended may be there only after the look.
        assert not set(pair["sent"]) & set(first["blobs"]), pair
        assert (then["manifest"], then["missing"], set(then["blobs"])) == (digest, [], everything), pair
    there = {len(pair["first"]["blobs"]) for pair in pairs}
    assert {0, len(everything)} < there, "it was killed before, between and after the blobs"
    assert len(everything) > 4
