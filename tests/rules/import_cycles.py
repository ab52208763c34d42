"""Finds import cycles: every import of the product counts, those in functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.rules.tree import ROOMS

Graph = Mapping[str, set[str]]


def import_graph(top: Path) -> Graph:
    """Return for each module of the rooms below `top` the modules of the rooms that it imports."""
    paths = {_name(path, top): path for room in ROOMS for path in (top / room).rglob("*.py")}
    return {name: _imports(name, path, paths.keys()) for name, path in paths.items()}


def find_cycle(graph: Graph, allowed: set[frozenset[str]]) -> list[str]:
    """Return the modules of one import cycle, or none. `allowed` are pairs of modules that may import each other."""
    kept = {
        name: {other for other in found if frozenset((name, other)) not in allowed} for name, found in graph.items()
    }
    try:
        TopologicalSorter(kept).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def _name(path: Path, top: Path) -> str:
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(name: str, path: Path, modules: AbstractSet[str]) -> set[str]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in modules else ".".join(base))
    return (found & modules) - {name}
