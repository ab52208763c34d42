"""A host in a process of its own, for tests that stop it, kill it or put it behind a router.

Its argument is JSON: `listen`, and fields of `HostSettings`. It says who it is, echoes, and does what lines of JSON on
its stdin say, one at a time, answering each with a line.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import structlog
import trio

from tests.agent.p2p.talking import talks
from twinshare.agent.p2p.contract_hosts import ECHO, admit_all, echo
from twinshare.agent.p2p.host import Host
from twinshare.agent.p2p.libp2p import open_libp2p_host
from twinshare.agent.p2p.libp2p.settings import HostSettings
from twinshare.protocols.errors import TwinshareError


def _megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def _do(host: Host, command: str, peer: str = "", addresses: list[str] | None = None, size: int = 1) -> Any:
    match command:
        case "connect":
            return (await host.connect(peer, addresses or [])).path
        case "path":
            return host.path(peer)
        case "talk":
            await talks(host, peer, bytes(size))
            return size
        case "ping":
            return await host.ping(peer)
        case "connections":
            return [[each.peer_id, each.address, each.path] for each in host.connections]
    return list(host.addresses)


async def main(listen: str = "/ip4/127.0.0.1/tcp/0", **settings: Any) -> None:
    async with open_libp2p_host(os.urandom(32), [listen], gate=admit_all, settings=HostSettings(**settings)) as host:
        host.serve(ECHO, echo)
        loaded = [name for name in sys.modules if name.split(".")[0] in ("libp2p", "aioquic", "requests", "dns")]
        said: dict[str, Any] = {"peer_id": host.peer_id, "addresses": list(host.addresses)}
        _say({**said, "loaded": loaded, "megabytes": _megabytes()})
        async for line in trio.wrap_file(sys.stdin):
            asked = json.loads(line)
            number = asked.pop("id")
            try:
                _say({"id": number, "result": await _do(host, **asked)})
            except TwinshareError as error:
                _say({"id": number, "error": error.message})


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(lambda: main(**json.loads(sys.argv[1])))
