"""Change what the network inside may reach, from outside: the machine's addresses come and go."""

from __future__ import annotations

import json
import sys

from . import network, walls


def main() -> None:
    """Started as `... fence.main() PID CHANGES` with `{"add": [...], "remove": [...]}` for the network of PID."""
    changes = json.loads(sys.argv[2])
    walls.enter_network(int(sys.argv[1]))
    network.fence(changes["add"], changes["remove"])
