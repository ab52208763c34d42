"""`guest-exec` of a simulated guest agent: commands are processes of this machine."""

from __future__ import annotations

import subprocess
from base64 import b64encode
from collections.abc import Sequence

import trio


class AgentProcesses:
    """The commands of one run of a guest."""

    def __init__(self) -> None:
        self._ended: dict[int, subprocess.CompletedProcess[bytes] | None] = {}

    def add(self) -> int:
        """Return the number of a command that `run` is to run."""
        number = len(self._ended) + 1
        self._ended[number] = None
        return number

    async def run(self, number: int, argv: Sequence[str]) -> None:
        self._ended[number] = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)

    def status(self, number: int) -> dict[str, object]:
        """Return what the guest agent answers. Raises: KeyError."""
        done = self._ended[number]
        if done is None:
            return {"exited": False}
        how = {"exitcode": done.returncode} if done.returncode >= 0 else {"signal": -done.returncode}
        return {
            "exited": True,
            **how,
            "out-data": b64encode(done.stdout).decode(),
            "err-data": b64encode(done.stderr).decode(),
        }
