"""A host in a process of its own, for tests that stop or kill it: prints its peer ID and addresses, and echoes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import trio

from twinshare.agent.p2p.contract import ECHO, echo, everybody
from twinshare.agent.p2p.libp2p import open_libp2p_host
from twinshare.agent.p2p.libp2p.settings import HostSettings


def _megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def main() -> None:
    settings = HostSettings(dead_after=float(sys.argv[1]))
    async with open_libp2p_host(os.urandom(32), ["/ip4/127.0.0.1/tcp/0"], gate=everybody, settings=settings) as host:
        host.serve(ECHO, echo)
        loaded = [name for name in sys.modules if name.split(".")[0] in ("libp2p", "aioquic", "requests", "dns")]
        report = {
            "peer_id": host.peer_id,
            "addresses": list(host.addresses),
            "loaded": loaded,
            "megabytes": _megabytes(),
        }
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
