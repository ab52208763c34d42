"""The checkout as the rules see it: its own files, never what a tool or a virtual environment put beside them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
ROOMS = ("protocols", "agent", "api")


def modules(*folders: str) -> Iterator[tuple[str, ast.Module, str]]:
    """Each Python file below the folders: its path from the top, its syntax tree, its text."""
    for folder in folders:
        for path in sorted((TOP / folder).rglob("*.py")):
            text = path.read_text()
            yield path.relative_to(TOP).as_posix(), ast.parse(text), text
