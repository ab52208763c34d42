"""The document against the server, by a tool that knows nothing of us: no 5xx, nothing that is not documented."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio

from tests.api.served import SPEC, TABLE, Served, served, served_in_a_fleet
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.images.registry import transport
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.vm import VmSpec

MINUTES = 5
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method"
)
# The events never end, the image would be built from real packages, and consoles and guest streams are websockets.
NOT_FOR_IT = "(/events|/build-tiny|/console|/screen|/attach|/ssh|/dial/[^/]+)$"
# Peers have runs of their own.
LEFT_OUT = f"^/api/(p2p|remote)|{NOT_FOR_IT}"
# What ends a fleet is left out where the fleet is needed, with its whole path: an undeclared method is tried, too.
FLEET_ENDS = {"/api/p2p/stop", "/api/p2p/leave", "/api/p2p/peers/{peer}"}
# Images that the documents' examples name: they are here, so that VMs are made from them.
EXAMPLES = ("ubuntu-20.04", "ubuntu:latest", "ghcr.io/cirunlabs/ubuntu:latest")


async def nowhere(_host: str, _port: int) -> list[str]:
    """All names lead inside: whoever would ask the world is refused, and no registry can fail."""
    return ["127.0.0.1"]


async def run_cases(where: str, url: str, examples: int, folder: Path) -> tuple[int, str]:
    """Let schemathesis loose on what the document at `where` (an address or a file) says of the server at `url`.

    Its exit code and what it said: to be judged outside, where an error is not one in a dozen groups.
    """
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", where, "--url", url, "--checks", CHECKS,
        "--exclude-path-regex", LEFT_OUT if where.startswith("http") else NOT_FOR_IT,
        "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing",
        "--seed", "7", "--no-shrink", "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    with trio.fail_after(60 * MINUTES):
        done = await trio.run_process(command, capture_stdout=True, check=False, cwd=folder)
    return done.returncode, done.stdout.decode()


def judge(done: tuple[int, str], least: int) -> None:
    code, output = done
    assert code == 0, output[-6000:]
    cases = re.search(r"(\d+) generated", output)
    assert cases is not None
    assert int(cases[1]) >= least, output[-1500:]


async def furnish(node: Node) -> None:
    for name in EXAMPLES:
        await node.import_image(LOCAL_ADMIN, name, pieces(raw_disk(1)))
    for number in range(3):
        spec = msgspec.convert({**SPEC, "name": f"vm-{number}"}, VmSpec)
        await node.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": spec})


@pytest.mark.system
@pytest.mark.parametrize(("root", "examples"), [("/api", 15), ("/api/v1", 60)])
async def test_a_thousand_cases(root: str, examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "resolve", nowhere)
    async with served(tmp_path / "node") as api:
        await furnish(api.node)
        done = await run_cases(f"{api.url}{root}/openapi.json", api.url, examples, tmp_path)
        assert (await api.client.get("/api/health")).json()["status"] == "ok"
    judge(done, 1000)


async def document(api: Served, keep: Callable[[str, str], bool], file: Path) -> str:
    """The node's document of some of its verbs and paths, in which a peer has its name: a guessed one is not there."""
    found = await api.get("/api/openapi.json")
    found["paths"] = {
        path: {verb: operation for verb, operation in verbs.items() if keep(path, verb)}
        for path, verbs in found["paths"].items()
    }
    for verbs in found["paths"].values():
        for operation in verbs.values():
            for parameter in operation.get("parameters", []):
                if parameter.get("name") == "peer":
                    parameter["schema"] = {"type": "string", "enum": ["far", "local", "here", "nobody"]}
    await trio.Path(file).write_text(json.dumps(found))
    return str(file)


@pytest.mark.system
async def test_peers_and_what_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation again on a peer, and what is asked about peers; the fleet must be whole at the end."""
    monkeypatch.setattr(transport, "resolve", nowhere)

    def keep(path: str, verb: str) -> bool:
        return path.startswith(("/api/remote", "/api/p2p", "/api/fleet")) and path not in FLEET_ENDS

    async with served_in_a_fleet(tmp_path) as (api, far):
        await furnish(far)
        where = await document(api, keep, tmp_path / "peers.json")
        done = await run_cases(where, api.url, 15, tmp_path)
        assert [peer["status"] for peer in (await api.get("/api/p2p/peers"))["peers"]] == ["online"]
        assert await api.get("/api/remote/far/vm")
    judge(done, 1000)


@pytest.mark.system
async def test_what_ends_a_fleet(tmp_path: Path) -> None:
    """Start and stop P2P services, leave, and revoke peers, in any order; the node goes on alone."""

    def keep(path: str, verb: str) -> bool:
        about = ("start", "stop", "leave", "status", "info", "peers")
        return (
            path in {f"/api/p2p/{word}" for word in about} or path == "/api/p2p/peers/{peer}" or path == "/api/fleet/vm"
        )

    async with served_in_a_fleet(tmp_path) as (api, _):
        where = await document(api, keep, tmp_path / "ends.json")
        done = await run_cases(where, api.url, 25, tmp_path)
        assert (await api.client.post("/api/p2p/start")).json()["status"] == "started"
        assert (await api.client.post("/api/vm", json=SPEC)).status_code == 200
    judge(done, 100)
