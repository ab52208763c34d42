"""One contract, two hosts."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count

import pytest

from twinshare.agent.p2p.contract import CHECKS
from twinshare.agent.p2p.contract_hosts import Check
from twinshare.agent.p2p.host import Gate, Host
from twinshare.agent.p2p.libp2p import open_libp2p_host
from twinshare.agent.p2p.memory import MemoryNetwork, open_memory_host


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_libp2p(check: Check) -> None:
    @asynccontextmanager
    async def open_host(gate: Gate) -> AsyncIterator[Host]:
        async with open_libp2p_host(os.urandom(32), ["/ip4/127.0.0.1/tcp/0"], gate=gate) as host:
            yield host

    await check(open_host)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_memory(check: Check) -> None:
    network, names = MemoryNetwork(), count()

    def open_host(gate: Gate) -> AbstractAsyncContextManager[Host]:
        return open_memory_host(network, f"peer{next(names)}", gate)

    await check(open_host)
