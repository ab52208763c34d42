"""`twinshare image` against scripted nodes: what it sends and prints."""

import json
from typing import Any

from tests.api.recorded import Answer, operation, recorded_node
from tests.api.test_cli import IMAGE, twinshare

LOST = IMAGE | {"name": "", "tag": "", "digest": "blake3:11"}
THEIRS = IMAGE | {"name": "org/base", "tag": "v1", "registry": "ghcr.io"}


def ended(kind: str, result: Any) -> list[Answer]:
    return [Answer(operation("done", kind=kind, result=result), 202)]


def test_an_image_is_made_of_a_vm() -> None:
    with recorded_node({"POST /api/image": ended("capture_image", IMAGE)}) as node:
        result = twinshare(node, *["image", "create", "tiny:latest", "--from-vm", "web"])
    assert (result.exit_code, result.stdout) == (0, "tiny:latest sha256:00\n")
    assert node.seen[0].json == {"vm": "web", "name": "tiny:latest"}


def test_prune_tells_what_goes_and_how_much_it_frees() -> None:
    report = {"images": [LOST, THEIRS], "freed": 10 << 20, "dry_run": True}
    with recorded_node({"POST /api/image/prune": ended("prune_images", report)}) as node:
        told = twinshare(node, *["image", "prune", "--all", "--dry-run"])
        document = twinshare(node, *["image", "prune", "--all", "--dry-run", "--json"])
    assert told.stdout.splitlines() == ["blake3:11 5 MiB", "ghcr.io/org/base:v1 5 MiB"]
    assert "10 MiB would be free" in told.stderr
    assert node.seen[0].json == {"all": True, "dry_run": True}
    assert json.loads(document.stdout)["freed"] == 10 << 20
