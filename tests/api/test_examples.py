"""The examples, run against a node whose guest is this machine; of the outside only GitHub is a fake."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.nodes import spec
from tests.api.served import TABLE, Served, served
from tests.rules.tree import TOP
from twinshare.api.sync import RESTClient
from twinshare.protocols.access import LOCAL_ADMIN


def example(name: str) -> Any:
    """Import an example by its path below examples/."""
    found = spec_from_file_location(Path(name).stem, TOP / "examples" / name)
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


async def with_node(folder: Path, use: Callable[[str], None], prepare: Callable[[Served], Any] | None = None) -> Served:
    async with served(folder, guests="?guest_program=1") as api:
        if prepare is not None:
            await prepare(api)
        await trio.to_thread.run_sync(use, api.url)
        assert await api.node.call(LOCAL_ADMIN, TABLE["list_vms"], {}) == [] or prepare is not None
        return api


async def test_the_sandbox_runs_a_program_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = example("agent_sandbox.py")
    monkeypatch.setattr(sandbox, "WHERE", str(tmp_path / "program"))
    codes: list[int] = []

    def use(url: str) -> None:
        with RESTClient(url) as client:
            programs = (b"#!/bin/sh\necho hello\nexit 7\n", b"#!/bin/sh\nsleep 60\n")
            codes.extend(sandbox.run_untrusted(client, program, "disk", limit=2) for program in programs)

    await with_node(tmp_path / "node", use)
    assert codes == [7, 124]
    assert "hello" in capsys.readouterr().out


@contextmanager
def github() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "token": self.headers["Authorization"], **body})
            answer = json.dumps({"encoded_jit_config": "Y29uZmln"}).encode()
            self.send_response(201)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_runner_takes_one_job_in_a_vm_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = example("actions_runner.py")
    program = tmp_path / "run.sh"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/ran\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr(runner, "RUNNER", str(program))
    monkeypatch.setattr(runner, "VmSpec", lambda **more: spec(**{**more, "memory": 64, "disk_size": 1}))
    codes: list[int] = []
    with github() as (url, asked):

        def use(api: str) -> None:
            with RESTClient(api) as client:
                codes.append(runner.run_job(client, url, "me/site", "secret", "disk"))

        await with_node(tmp_path / "node", use)
    assert codes == [3]
    assert (tmp_path / "ran").read_text().split() == ["--jitconfig", "Y29uZmln"]
    assert [(one["path"], one["token"]) for one in asked] == [
        ("/repos/me/site/actions/runners/generate-jitconfig", "Bearer secret")
    ]


async def test_ansible_gets_the_running_vms_with_groups(tmp_path: Path) -> None:
    async def prepare(api: Served) -> None:
        for made in (spec("web", start=True, labels={"role": "web", "user": "debian"}), spec("off")):
            await api.node.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": made})

    found: dict[str, Any] = {}

    def use(url: str) -> None:
        import subprocess

        done = subprocess.run(
            [sys.executable, str(TOP / "examples/ansible/twinshare_inventory.py"), "--list"],
            env={**os.environ, "TWINSHARE_API": url}, capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        found.update(json.loads(done.stdout))

    await with_node(tmp_path, use, prepare)
    assert found["node_here"]["hosts"] == found["label_role_web"]["hosts"] == ["web"]
    known = found["_meta"]["hostvars"]["web"]
    assert (known["ansible_host"], known["ansible_user"]) == ("web.twin", "debian")
    assert list(found["_meta"]["hostvars"]) == ["web"]
