"""No module of the product imports itself through others; a cycle that is added is found, however it is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.rules.import_cycles import find_cycle, import_graph
from tests.rules.tree import ROOMS, TOP

# Cycles that are still there. This list only shrinks.
ALLOWED: set[frozenset[str]] = set()


def test_there_is_no_import_cycle() -> None:
    assert find_cycle(import_graph(TOP), ALLOWED) == []


def test_the_list_of_cycles_only_shrinks() -> None:
    graph = import_graph(TOP)
    left = {frozenset((name, other)) for name, found in graph.items() for other in found if name in graph[other]}
    assert left >= ALLOWED, "remove from ALLOWED what is gone"


@pytest.mark.parametrize(
    "offence",
    [
        "from .host import LibP2pHost",
        "from . import host",
        "if TYPE_CHECKING:\n    from .host import LibP2pHost",
        "def late() -> None:\n    from ..libp2p.host import LibP2pHost",
    ],
)
def test_an_added_cycle_is_found(tmp_path: Path, offence: str) -> None:
    for room in ROOMS:
        shutil.copytree(TOP / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
    spoiled = tmp_path / "agent/p2p/libp2p/swarm.py"
    spoiled.write_text(f"{spoiled.read_text()}\n{offence}\n")
    cycle = find_cycle(import_graph(tmp_path), ALLOWED)
    assert {"agent.p2p.libp2p.swarm", "agent.p2p.libp2p.host"} <= set(cycle)
