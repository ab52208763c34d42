"""The hypervisor port of a machine without a hypervisor: every call says what to install."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import trio

from ...protocols.errors import HypervisorDown
from .port import Change, Domain, DomainPlan, Features


class AbsentHypervisor:
    """Refuses every call; `problem` says what is missing and what to do."""

    def __init__(self, problem: str) -> None:
        self._problem = problem
        self._send, self.changes = trio.open_memory_channel[Change](1)
        self.connected = False
        self.features = Features(
            name="none", version="", uri="", accelerator="qemu", networks=(), host_cpus=0, problems=(problem,)
        )

    def _refuse(self) -> NoReturn:
        raise HypervisorDown(f"this node cannot run VMs: {self._problem}")

    async def list_domains(self) -> Sequence[Domain]:
        self._refuse()

    async def get_domain(self, id: str) -> Domain:
        self._refuse()

    async def define(self, plan: DomainPlan) -> None:
        self._refuse()

    async def undefine(self, id: str) -> None:
        self._refuse()

    async def start(self, id: str) -> None:
        self._refuse()

    async def shutdown(self, id: str) -> None:
        self._refuse()

    async def destroy(self, id: str) -> None:
        self._refuse()

    async def pause(self, id: str) -> None:
        self._refuse()

    async def resume(self, id: str) -> None:
        self._refuse()

    async def set_metadata(self, id: str, metadata: str) -> None:
        self._refuse()

    async def disk_path(self, id: str) -> Path:
        self._refuse()
