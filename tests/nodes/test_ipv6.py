"""Two nodes in network namespaces that have IPv6 alone: they join, call, carry a tunnel and a console."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.p2p.routers import two_on_ipv6
from tests.nodes.test_routers import Node, until_path

pytestmark = pytest.mark.system

SPEC = {"name": "far", "image": "blank", "memory": 128, "disk_size": 1, "cpu_cores": 1, "start": True}


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes with the addresses that a node listens on by default, not yet of one fleet."""
    with two_on_ipv6() as namespaces:
        async with AsyncExitStack() as stack:
            nodes = []
            for name, where in zip(("one", "two"), namespaces, strict=True):
                node = Node(where, folder / name, listen=None, api="[::1]:8080")
                await node.agent.start()
                stack.push_async_callback(node.agent.stop)
                nodes.append(node)
            yield nodes[0], nodes[1]


async def command(node: Node, *words: str, given: bytes = b"") -> str:
    program = [*node.where, sys.executable, "-m", "twinshare", *words]
    environment = {"TWINSHARE_API": node.url, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    done = await trio.run_process(
        program, stdin=given, capture_stdout=True, capture_stderr=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


async def test_two_nodes_with_ipv6_alone_are_one_fleet(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (one, two):
        own: dict[str, Any] = await one.ask("GET", "/api/p2p/info")
        assert own["addresses"], own
        assert all(address.startswith("/ip6/fd") for address in own["addresses"]), own
        ticket = await one.ask("POST", "/api/p2p/invite", {"role": "admin"})
        assert ticket["addresses"] == [address.partition("/p2p/")[0] for address in own["addresses"]]
        assert ticket["warnings"] == []
        joined = await two.ask("POST", "/api/p2p/join", {"ticket": ticket["ticket"]})
        assert joined["name"] == "one", joined
        await until_path(one, "two", "direct", 20)
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(1 << 20))
        await two.upload("blank", disk)
        made = await one.ask("POST", "/api/remote/two/vm", SPEC)
        assert made["status"] == "running", made

        place = "/api/remote/two/vm/far/port-forward"
        forward = await one.ask("POST", place, {"host_port": 0, "guest_port": 80, "bind": "::1"})
        assert forward["bind"] == "::1", forward
        page = await one.fetch(f"http://[::1]:{forward['host_port']}/")
        assert page == b"far\n"

        echoed = await command(one, "vm", "console", "far", "--on", "two", given=b"hello over six\r")
        assert "hello over six" in echoed
        peers = await command(one, "peer", "ls")
        assert "[fd00:99::2]:4001" in peers, peers
