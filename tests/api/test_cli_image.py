"""`twinshare image` against scripted nodes: what it sends and prints."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.api.recorded import VM, Answer, operation, recorded_node
from tests.api.test_cli import IMAGE, twinshare
from twinshare.api.cli.progress import ProgressText
from twinshare.protocols.operation import Operation, Progress

LOST = IMAGE | {"name": "", "tag": "", "digest": "blake3:11"}
THEIRS = IMAGE | {"name": "org/base", "tag": "v1", "registry": "ghcr.io"}


def ended(kind: str, result: Any) -> list[Answer]:
    return [Answer(operation("done", kind=kind, result=result), 202)]


def test_an_image_is_made_of_a_vm() -> None:
    with recorded_node({"POST /api/image": ended("capture_image", IMAGE)}) as node:
        result = twinshare(node, *["image", "create", "tiny:latest", "--from-vm", "web"])
    assert (result.exit_code, result.stdout) == (0, "tiny:latest sha256:00\n")
    assert node.seen[0].json == {"vm": "web", "name": "tiny:latest"}


def test_an_image_of_a_vm_may_be_nobodys_in_particular() -> None:
    with recorded_node({"POST /api/image": ended("capture_image", IMAGE)}) as node:
        twinshare(node, *["image", "create", "tiny:latest", "--from-vm", "web", "--reset-identity"])
    assert node.seen[0].json == {"vm": "web", "name": "tiny:latest", "reset_identity": True}


def test_prune_tells_what_goes_and_how_much_it_frees() -> None:
    report = {"images": [LOST, THEIRS], "freed": 10 << 20, "dry_run": True}
    with recorded_node({"POST /api/image/prune": ended("prune_images", report)}) as node:
        result = twinshare(node, *["image", "prune", "--all", "--dry-run"])
        document = twinshare(node, *["image", "prune", "--all", "--dry-run", "--json"])
    assert result.stdout.splitlines() == ["blake3:11 5 MiB", "ghcr.io/org/base:v1 5 MiB"]
    assert "10 MiB would be free" in result.stderr
    assert node.seen[0].json == {"all": True, "dry_run": True}
    assert json.loads(document.stdout)["freed"] == 10 << 20


def test_a_pull_names_what_it_fetches_and_what_it_is_called() -> None:
    with recorded_node({"POST /api/image/pull": ended("pull_image", THEIRS)}) as node:
        result = twinshare(node, "image", "pull", "ghcr.io/org/base:v1")
        named = twinshare(node, *["image", "pull", "https://x.example/d.img", "--sha256", "ab", "--name", "d"])
    assert (result.exit_code, result.stdout) == (0, "ghcr.io/org/base:v1 sha256:00\n")
    assert node.seen[0].json == {"image": "ghcr.io/org/base:v1"}
    assert named.exit_code == 0
    assert node.seen[1].json == {"image": "https://x.example/d.img", "sha256": "ab", "name": "d"}


def test_the_login_of_docker_s_configuration_is_sent_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    auth = base64.b64encode(b"ann:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"ghcr.io": {"auth": auth}}}))
    with recorded_node({"POST /api/image/pull": ended("pull_image", THEIRS)}) as node:
        assert twinshare(node, "image", "pull", "ghcr.io/org/base:v1").exit_code == 0
        assert twinshare(node, "image", "pull", "ghcr.io/org/base:v1", "--login").exit_code == 0
        missing = twinshare(node, "image", "push", "tiny", "r.example/tiny:v1", "--login")
    own = {"registry": "ghcr.io", "username": "ann", "password": "secret"}
    assert [seen.json.get("credentials") for seen in node.seen] == [None, own]
    assert missing.exit_code == 2
    assert "docker login r.example" in missing.stderr


def test_a_push_tells_the_manifest_and_a_dry_run_that_it_would_do() -> None:
    sent = {"image": IMAGE, "target": "r.example/tiny:v1", "manifest": "sha256:22"}
    with recorded_node({"POST /api/image/push": ended("push_image", sent)}) as node:
        assert twinshare(node, "image", "push", "tiny", "r.example/tiny:v1").stdout == "r.example/tiny:v1 sha256:22\n"
    tried = ended("push_image", sent | {"manifest": ""})
    with recorded_node({"POST /api/image/push": tried}) as node:
        result = twinshare(node, *["image", "push", "tiny", "r.example/tiny:v1", "--dry-run"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "would be taken" in result.stderr
    assert node.seen[0].json == {"image": "tiny", "target": "r.example/tiny:v1", "dry_run": True}


def test_the_catalogue() -> None:
    entry = {"name": "debian-12", "source": "https://x.example", "user": "debian", "about": "Debian 12"}
    with recorded_node({"GET /api/catalogue": [Answer({"entries": [entry]})]}) as node:
        lines = twinshare(node, "image", "catalogue").stdout.splitlines()
    assert lines[1].split() == ["debian-12", "debian", "Debian", "12"]


def test_run_makes_a_vm_and_prints_its_address() -> None:
    addresses = {"ip": "10.0.2.15", "addresses": ["10.0.2.15"], "source": "agent"}
    routes = {
        "POST /api/vm": ended("create_vm", VM),
        f"GET /api/vm/{VM['id']}/ip": [
            Answer({"ip": None, "addresses": [], "source": "none"}),
            Answer(addresses),
        ],
    }
    with recorded_node(routes) as node:
        result = twinshare(node, *["image", "run", "ghcr.io/org/my_base:v1", "--memory", "128", "--forward", "8081:80"])
        document = twinshare(node, *["image", "run", "tiny", "--name", "web", "--json"])
    assert (result.exit_code, result.stdout) == (0, "example-vm 10.0.2.15\n")
    asked = node.seen[0].json
    assert re.fullmatch("my-base-[0-9a-f]{6}", asked.pop("name"))
    forwards = [{"host_port": 8081, "guest_port": 80}]
    assert asked == {"image": "ghcr.io/org/my_base:v1", "memory": 128, "start": True, "forwards": forwards}
    assert json.loads(document.stdout)["ip"] == "10.0.2.15"


def test_progress_has_a_bar_and_a_rate() -> None:
    now = 0.0
    tell = ProgressText(lambda: now)
    mib = 1 << 20

    def at(done: int, message: str = "fetching; 5 bytes were here already", total: int | None = 100 * mib) -> str:
        progress = Progress(done=done, total=total, unit="bytes", message=message)
        found = msgspec.convert(operation("running", kind="pull_image", target="web"), Operation)
        return tell(msgspec.structs.replace(found, progress=progress))

    assert at(0) == f"pull_image web: fetching; 5 bytes were here already [{'.' * 20}] 0 B of 100 MiB"
    now = 2.0
    assert at(50 * mib).endswith(f"[{'#' * 10}{'.' * 10}] 50 MiB of 100 MiB 25 MiB/s")
    assert at(0, "hashing", None) == "pull_image web: hashing 0 B"
    now = 3.0
    assert at(2 * mib, "hashing", None) == "pull_image web: hashing 2 MiB 2 MiB/s"


def test_fsck_tells_what_it_mended_and_fails_when_something_is_damaged() -> None:
    mended = {"fault": "index", "message": "the index of a:1 is made anew", "mended": True}
    damage = {
        "fault": "damaged",
        "message": "the disk of b:1 is wrong",
        "mended": False,
        "names": ["b:1"],
        "vms": ["w"],
    }
    report = {"images": 2, "bytes": 10 << 20, "findings": [mended]}
    with recorded_node({"POST /api/image/fsck": ended("fsck_images", report)}) as node:
        healthy = twinshare(node, "image", "fsck")
    assert (healthy.exit_code, healthy.stdout) == (0, "mended: the index of a:1 is made anew\n")
    assert "images read: 2, 10 MiB" in healthy.stderr
    report["findings"] = [mended, damage]
    with recorded_node({"POST /api/image/fsck": ended("fsck_images", report)}) as node:
        result = twinshare(node, "image", "fsck")
        document = twinshare(node, "image", "fsck", "--json")
    assert result.exit_code == document.exit_code == 1
    assert result.stdout.splitlines()[1] == "DAMAGE: the disk of b:1 is wrong"
    assert [one["vms"] for one in json.loads(document.stdout)["findings"]] == [[], ["w"]]
