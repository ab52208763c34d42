"""For tests, of this project and of others: real agents as processes, fleets in memory, adapters' checks.

An agent is started as a user starts it, found by the `agent.json` it writes, and ended by the block that began it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from .hypervisor.contract import check_hypervisor
from .images.contract import check_image_store
from .images.contract_exchange import check_image_exchange
from .p2p.contract import check_host
from .p2p.memory import MemoryNetwork
from .simulation import Cluster, SimulatedNode, open_cluster

__all__ = [
    "AgentProcess",
    "Cluster",
    "MemoryNetwork",
    "SimulatedNode",
    "check_host",
    "check_hypervisor",
    "check_image_exchange",
    "check_image_store",
    "open_agent",
    "open_cluster",
]

READY_WITHIN = 30.0
STOPPED_WITHIN = 20.0


class AgentDied(Exception):
    """The agent ended before it was ready; the message is what it said last."""


class AgentProcess:
    """One agent, which may be killed and started again on the same data directory."""

    def __init__(
        self,
        data_dir: Path,
        options: Sequence[str],
        environment: Mapping[str, str],
        program: Sequence[str] | None = None,
    ) -> None:
        """`program` is run in place of `python -m twinshare agent`."""
        self._program = program or [sys.executable, "-m", "twinshare", "agent"]
        self.data_dir = data_dir
        self.log = data_dir.with_name(f"{data_dir.name}.log")
        self._options = options
        # Alone unless a test asks for peers: most need none, and the default port would be everybody's.
        self._environment = {**os.environ, "TWINSHARE_P2P_ENABLED": "false", **environment}
        self._process: trio.Process | None = None
        self.agent_file: dict[str, Any] = {}

    @property
    def url(self) -> str:
        """The base of its REST API. A restarted agent may have another."""
        return str(self.agent_file["api_url"])

    @property
    def pid(self) -> int:
        if self._process is None:
            raise AgentDied("the agent was not started")
        return self._process.pid

    @property
    def said(self) -> str:
        """What it wrote to its log, all starts together."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    async def start(self, *options: str) -> None:
        """Start it and wait until it is ready. Raises: AgentDied, trio.TooSlowError."""
        command = [*self._program, "--data-dir", str(self.data_dir)]
        with self.log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                [*command, *self._options, *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment,
            )  # fmt: skip
        with trio.fail_after(READY_WITHIN):
            while not self._is_ready():
                if self._process.poll() is not None:
                    raise AgentDied(f"exit {self._process.returncode}: {self.said[-2000:]}")
                await trio.sleep(0.01)

    def _is_ready(self) -> bool:
        try:
            agent_file = json.loads((self.data_dir / "agent.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        self.agent_file = agent_file
        return bool(agent_file["pid"] == self.pid)

    async def kill(self) -> None:
        """SIGKILL, as a crash would."""
        await self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: it falls silent and keeps all that it holds, as a machine does that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on where it was."""
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self) -> int:
        """SIGTERM, as a service manager would. Returns the exit code. Raises: trio.TooSlowError."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        with trio.fail_after(STOPPED_WITHIN):
            code = await process.wait()
        self._process = None
        return code


@asynccontextmanager
async def open_agent(
    data_dir: Path, *options: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[AgentProcess]:
    """A running agent on free ports. At the end it is stopped, or killed if it does not stop."""
    agent = AgentProcess(data_dir, ["--api", "127.0.0.1:0", *options], environment or {})
    await agent.start()
    try:
        yield agent
    finally:
        with trio.CancelScope(shield=True):
            try:
                await agent.stop()
            except trio.TooSlowError:
                await agent.kill()
