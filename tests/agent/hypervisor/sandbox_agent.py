"""An agent of one sandbox, as a process that tests can put anywhere and kill.

It reads one JSON command a line and answers each with one line.
Started as `python sandbox_agent.py DATA_DIR KIND [UID]`; with UID it becomes that user first.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parents[3]))

from twinshare.agent.hypervisor.sandbox.sandbox import Sandbox, open_sandbox
from twinshare.protocols.errors import TwinshareError


async def _obey(sandbox: Sandbox, command: dict[str, Any]) -> Any:
    match command["do"]:
        case "run":
            done = await sandbox.run(command["argv"], timeout=command.get("timeout", 20))
            return [done.returncode, done.stdout.decode(), done.stderr.decode()]
        case "spawn":
            log = sandbox.path / "hypervisor/test.log"
            return (await sandbox.spawn(command["argv"], env={"PATH": "/usr/bin:/bin"}, stderr=log)).pid
        case "dial":
            async with await sandbox.dial(command["port"]) as stream:
                return (await stream.receive_some(1000)).decode()
        case "own":
            return sandbox.chown(Path(command["path"]))
        case "connected":
            with trio.move_on_after(command["within"]):
                while not sandbox.connected:
                    await trio.sleep(0.02)
            return sandbox.connected
        case "state":
            return {
                "kind": sandbox.kind,
                "path": str(sandbox.path),
                "user": sandbox.user,
                "problems": list(sandbox.problems),
                "pids": sorted(sandbox.pids()),
            }
        case other:
            raise AssertionError(other)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main() -> None:
    async with open_sandbox(Path(sys.argv[1]), kind=sys.argv[2]) as sandbox:
        _say({})
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            try:
                answer = {"answer": await _obey(sandbox, json.loads(line))}
            except (OSError, TwinshareError) as error:
                answer = {"error": str(error)}
            _say(answer)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        os.setgroups([])
        os.setresgid(int(sys.argv[3]), int(sys.argv[3]), int(sys.argv[3]))
        os.setresuid(int(sys.argv[3]), int(sys.argv[3]), int(sys.argv[3]))
    try:
        trio.run(main)
    except TwinshareError as error:
        _say({"error": error.message})
