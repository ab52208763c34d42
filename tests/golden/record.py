"""Record the golden files of the version that this tree is: `python -m tests.golden.record tests/golden/vN`.

The data directory is made by agents as processes, through REST; operations are stopped by SIGKILL in the middle, each
behind a trigger that holds the write after the step where it is to stay. The keys and tokens are of these files alone.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.golden.record_wire import record_wire
from twinshare.agent.images.contract_samples import raw_disk
from twinshare.agent.testing import AgentProcess

PLACE = Path("/tmp/twinshare-golden")  # the directory names itself in its files, so it has one place
CONFIG = """\
[node]
name = "golden"

[hypervisor]
uri = "fake:///tmp/twinshare-golden/fake.json"
stop_timeout = 2

[p2p]
listen = ["/ip4/127.0.0.1/tcp/0"]
mdns = false
dead_peer_timeout = 2.0

[images]
default = "disk"

[[images.registries]]
host = "127.0.0.1:1"
insecure = true

[peers.12D3KooWGoldenStranger]
deny = true
"""
SMALL = {"image": "disk", "cpu_cores": 1, "memory": 64, "disk_size": 1}
SPY = """
CREATE TABLE IF NOT EXISTS golden (seen INTEGER PRIMARY KEY, id, key, kind, target, principal, request, state, step,
    notes, result, error, created_at, updated_at);
CREATE TABLE IF NOT EXISTS golden_stop (target, step);
CREATE TRIGGER IF NOT EXISTS golden_i AFTER INSERT ON operations BEGIN
    INSERT INTO golden SELECT NULL, * FROM operations WHERE id = NEW.id; END;
CREATE TRIGGER IF NOT EXISTS golden_u AFTER UPDATE ON operations BEGIN
    INSERT INTO golden SELECT NULL, * FROM operations WHERE id = NEW.id; END;
CREATE TRIGGER IF NOT EXISTS golden_stop BEFORE UPDATE ON operations
    WHEN EXISTS (SELECT * FROM golden_stop WHERE target = OLD.target AND step = OLD.step) BEGIN
    SELECT count(*) FROM (WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1e12)
        SELECT n FROM c); END;
"""
FORGET = """
DROP TRIGGER golden_i; DROP TRIGGER golden_u; DROP TRIGGER golden_stop; DROP TABLE golden; DROP TABLE golden_stop;
"""
# What is under way in the directory: the VM, at which step it stays (nothing: it was not begun), verb, path, body.
UNDER_WAY: tuple[tuple[str, str, str, str, Any], ...] = (
    ("create-pending", "", "POST", "/api/vm", SMALL | {"name": "create-pending"}),
    ("create-disk", "disk", "POST", "/api/vm", SMALL | {"name": "create-disk", "start": True}),
    ("create-seed", "seed", "POST", "/api/vm", SMALL | {"name": "create-seed", "labels": {"a": "b"}}),
    ("create-define", "define", "POST", "/api/vm", SMALL | {"name": "create-define", "start": True}),
    ("create-start", "start", "POST", "/api/vm", SMALL | {"name": "create-start", "start": True}),
    ("create-undo", "undo", "POST", "/api/vm", SMALL | {"name": "create-undo", "image": "127.0.0.1:1/none:1"}),
    ("start", "start", "POST", "/api/vm/start/start", None),
    ("stop", "destroy", "POST", "/api/vm/stop/stop", {"force": True}),
    ("restart", "start", "POST", "/api/vm/restart/restart", {"force": True}),
    ("delete-destroy", "destroy", "DELETE", "/api/vm/delete-destroy", {"force": True}),
    ("delete-files", "files", "DELETE", "/api/vm/delete-files", {"force": True}),
    ("delete-undefine", "undefine", "DELETE", "/api/vm/delete-undefine", {"force": True, "delete_disk": False}),
    ("forward", "keep", "POST", "/api/vm/forward/port-forward", {"host_port": 0, "guest_port": 80}),
)


class Recorder:
    """An agent on `PLACE`, started and killed."""

    def __init__(self) -> None:
        self.agent = AgentProcess(
            PLACE, ["--api", "127.0.0.1:0"], {"TWINSHARE_P2P_ENABLED": "true"},
            program=[sys.executable, "-m", "twinshare", "agent", "--config", str(PLACE / "twinshare.toml")],
        )  # fmt: skip

    async def ask(self, verb: str, path: str, body: Any = None, *, expect: int = 200, **more: Any) -> Any:
        async with httpx.AsyncClient(base_url=self.agent.url, timeout=60) as http:
            answer = await http.request(verb, path, json=body, **more)
        assert answer.status_code == expect, (verb, path, answer.status_code, answer.text)
        return answer.json()

    def sql(self, statements: str) -> list[Any]:
        with closing(sqlite3.connect(PLACE / "twinshare.db", timeout=60)) as db:
            if statements.startswith("SELECT"):
                return db.execute(statements).fetchall()
            db.executescript(statements)
            return []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.agent.start()
        try:
            yield
        finally:
            await self.agent.stop()

    async def leave(self, target: str, step: str, verb: str, path: str, body: Any) -> None:
        """Begin an operation, and kill the agent while it is at `step`; hidden from the next start as `parked`."""
        await self.agent.start()
        before = {row[0] for row in self.sql("SELECT id FROM operations")}
        self.sql(f"INSERT INTO golden_stop VALUES ('{target}', '{step}')")  # noqa: S608 - a constant of this file
        await self.ask(verb, path, body, expect=202, headers={"Prefer": "respond-async"})
        with trio.fail_after(20):
            while not (rows := [r for r in self.sql("SELECT id, step FROM operations") if r[0] not in before]) or (
                rows[0][1] != step
            ):
                await trio.sleep(0.02)
        await trio.sleep(0.3)
        await self.agent.kill()
        self.sql("DELETE FROM golden_stop; DROP TRIGGER golden_u;")
        self.sql(f"UPDATE operations SET state = state || ' parked' WHERE id = '{rows[0][0]}'")  # noqa: S608 - our own id
        self.sql(SPY)


async def _make(far: AgentProcess) -> list[Any]:
    """The whole directory; returns the rows that the journal held one after the other."""
    recorder = Recorder()
    ask = recorder.ask
    async with recorder.running():
        await _upload(recorder.agent.url)
    recorder.sql(SPY)
    async with recorder.running():
        await _finished(recorder)
        await _fleet(recorder, far)
        for name in ("start", "stop", "restart", "delete-destroy", "delete-files", "delete-undefine", "forward"):
            await ask("POST", "/api/vm", SMALL | {"name": name, "start": name != "start"})
        await ask("POST", "/api/tokens", {"name": "golden", "role": "operator"})
    for target, step, verb, path, body in UNDER_WAY:
        await recorder.leave(target, step, verb, path, body)
    rows = recorder.sql("SELECT * FROM golden ORDER BY seen")
    recorder.sql(FORGET)
    recorder.sql("UPDATE operations SET state = replace(state, ' parked', '')")
    return rows


async def _finished(recorder: Recorder) -> None:
    """Operations of every kind that have ended, in each way."""
    ask = recorder.ask
    key = {"Idempotency-Key": "golden-key"}
    await ask(
        "POST", "/api/vm", SMALL | {"name": "kept", "start": True, "autostart": True, "labels": {"a": "b"}}, headers=key
    )
    await ask("POST", "/api/vm/kept/pause")
    await ask("POST", "/api/vm/kept/stop", {}, expect=409)
    await ask("POST", "/api/vm/kept/resume")
    await ask("PATCH", "/api/vm/kept", {"labels": {"a": "c"}})
    await ask("POST", "/api/vm/kept/restart", {"force": True})
    forward = await ask("POST", "/api/vm/kept/port-forward", {"host_port": 0, "guest_port": 80})
    await ask("DELETE", f"/api/vm/kept/port-forward/{forward['host_port']}")
    await ask("POST", "/api/vm/kept/port-forward", {"host_port": 0, "guest_port": 80})
    await ask("POST", "/api/vm", SMALL | {"name": "gone"})
    await ask("POST", "/api/vm/gone/start")
    await ask("POST", "/api/vm/gone/stop", {"force": True})
    await ask("POST", "/api/image", {"vm": "gone", "name": "captured"})
    await ask("DELETE", "/api/vm/gone")
    await ask("DELETE", "/api/image/captured")
    await ask("POST", "/api/image/prune", {"dry_run": True})
    await ask("POST", "/api/image/fsck")
    await ask("POST", "/api/image/push", {"image": "disk", "target": "127.0.0.1:1/none:1"}, expect=502)
    await ask("POST", "/api/image/pull", {"image": "127.0.0.1:1/none:1"}, expect=502)
    await ask("POST", "/api/vm", SMALL | {"name": "cancelled", "image": "disk"})
    later = await ask("POST", "/api/image/build-tiny", expect=202, headers={"Prefer": "respond-async"})
    await ask("DELETE", f"/api/operations/{later['id']}")


async def _fleet(recorder: Recorder, far: AgentProcess) -> None:
    """A peer that joins, a tunnel to it, a message of it, a ticket that nobody used, a member that was put out."""
    await _upload(far.url)
    async with httpx.AsyncClient(base_url=far.url, timeout=60) as http:
        ticket = await recorder.ask("POST", "/api/p2p/invite", {"role": "admin"})
        joined = await http.post("/api/p2p/join", json={"ticket": ticket["ticket"]})
        assert joined.status_code == 200, joined.text
        await http.post("/api/vm", json=SMALL | {"name": "there", "start": True})
        with trio.fail_after(20):
            while not any(
                peer["status"] == "online" for peer in (await recorder.ask("GET", "/api/p2p/peers"))["peers"]
            ):
                await trio.sleep(0.05)
        tunnel = await recorder.ask("POST", "/api/remote/far/vm/there/port-forward", {"host_port": 0, "guest_port": 80})
        await recorder.ask("DELETE", f"/api/remote/far/vm/there/port-forward/{tunnel['host_port']}")
        await recorder.ask("POST", "/api/remote/far/vm/there/port-forward", {"host_port": 0, "guest_port": 80})
        note = {"peer_id": "golden", "message_type": "NOTE", "data": {"text": "hello"}}
        assert (await http.post("/api/p2p/message", json=note)).status_code == 200
    await recorder.ask("POST", "/api/p2p/invite", {"role": "viewer", "limits": {"vms": 3}, "expires": 86400})


@asynccontextmanager
async def _far(folder: Path) -> AsyncIterator[AgentProcess]:
    (folder / "far").mkdir()
    _secret(folder / "far" / "identity.key", b"golden far".ljust(32, b"."))
    agent = AgentProcess(
        folder / "far",
        ["--api", "127.0.0.1:0", "--name", "far", "--listen", "/ip4/127.0.0.1/tcp/0", "--hypervisor", "fake://"],
        {"TWINSHARE_P2P_ENABLED": "true", "TWINSHARE_P2P_MDNS": "false"},
    )
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()


async def _upload(url: str) -> None:
    kind = {"Content-Type": "application/octet-stream"}
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        sent = await http.post("/api/image/import?name=disk", content=raw_disk(1), headers=kind)
    assert sent.status_code < 300, sent.text


def _secret(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    file.chmod(0o600)


def _as_json(value: Any) -> Any:
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _write_rows(file: Path, columns: list[str], rows: list[Any]) -> None:
    named = [dict(zip(columns, map(_as_json, row), strict=True)) for row in rows]
    file.write_text("[\n" + ",\n".join(map(json.dumps, named)) + "\n]\n")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record_wire(folder)
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(mode=0o711)
    (PLACE / "twinshare.toml").write_text(CONFIG)
    _secret(PLACE / "identity.key", b"golden node".ljust(32, b"."))
    _secret(PLACE / "admin.token", b"golden-admin-token\n")

    async def make() -> list[Any]:
        with tempfile.TemporaryDirectory() as scratch:
            async with _far(Path(scratch)) as far:
                return await _make(far)

    rows = trio.run(make)
    with closing(sqlite3.connect(PLACE / "twinshare.db")) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(operations)")]
        _write_rows(folder / "journal.json", columns, [row[1:] for row in rows if "parked" not in row[7]])
        for table in ("events", "audit", "mesh"):
            names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            _write_rows(folder / f"{table}.json", names, db.execute(f"SELECT * FROM {table}").fetchall())  # noqa: S608 - constants
    for file in (PLACE / "twinshare.db", PLACE / "images" / "images.db"):
        with closing(sqlite3.connect(file)) as db:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.rmtree(PLACE / "scratch")
    with tarfile.open(folder / "data.tar.gz", "w:gz", compresslevel=9) as archive:
        archive.add(PLACE, arcname="data")
    shutil.rmtree(PLACE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
