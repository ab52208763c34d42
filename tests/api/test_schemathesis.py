"""The document against the server, by a tool that knows nothing of us: no 5xx, nothing that is not told."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import trio

from tests.api.served import SPEC, served
from twinshare.agent.images.contract import pieces, raw_disk
from twinshare.agent.images.registry import reach
from twinshare.protocols.access import LOCAL_ADMIN

MINUTES = 5
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method"
)
# Without P2P services the first two answer 503; the events never end; the image would be built from real packages.
LEFT_OUT = "^/api/(p2p|remote|events|image/build-tiny)"
# Images that the documents' examples name: they are here, so that VMs are made from them.
EXAMPLES = ("ubuntu-20.04", "ubuntu:latest", "ghcr.io/cirunlabs/ubuntu:latest")


async def nowhere(_host: str, _port: int) -> list[str]:
    """All names lead inside: whoever would ask the world is refused, and no registry can fail."""
    return ["127.0.0.1"]


@pytest.mark.system
@pytest.mark.parametrize(("root", "examples"), [("/api", 15), ("/api/v1", 60)])
async def test_a_thousand_cases(root: str, examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "resolve", nowhere)
    async with served(tmp_path / "node") as api:
        for name in EXAMPLES:
            await api.node.import_image(LOCAL_ADMIN, name, pieces(raw_disk(1)))
        for number in range(3):
            await api.client.post("/api/vm", json={**SPEC, "name": f"vm-{number}"})
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}{root}/openapi.json", "--checks", CHECKS,
            "--exclude-path-regex", LEFT_OUT, "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing",
            "--seed", "7", "--no-shrink", "--continue-on-failure", "--no-color",
        ]  # fmt: skip
        with trio.fail_after(60 * MINUTES):
            done = await trio.run_process(command, capture_stdout=True, check=False, cwd=tmp_path)
        told = done.stdout.decode()
        assert done.returncode == 0, told[-6000:]
        cases = re.search(r"(\d+) generated", told)
        assert cases is not None
        assert int(cases[1]) >= 1000, told[-1500:]
        assert (await api.client.get("/api/health")).json()["status"] == "ok"
