"""The script that changes lines: it makes the changes that it promises, and its areas are there."""

from __future__ import annotations

import ast

from scripts.mutation.areas import AREAS
from scripts.mutation.mutants import mutants
from tests.rules.tree import TOP

SOURCE = '''
LIMIT = 3
async def take(lock: Lock, items: list[int], more: int = 1) -> int | None:
    """Two < three stays as it is."""
    async with lock:
        if len(items) >= LIMIT and not items[0]:
            raise ValueError(f"{more + 1} more")
        log.info("took", more=more + 1)
        items.append(more)
    return min(items)
'''


def test_each_change_is_a_program_with_one_change() -> None:
    found = list(mutants(SOURCE))
    for mutant in found:
        ast.parse(mutant.text)
        assert mutant.text != SOURCE
    changes = {(mutant.before, mutant.after) for mutant in found}
    assert {
        ("lock", '__import__("contextlib").AsyncExitStack()'),
        ("len(items) >= LIMIT", "(len(items) > LIMIT)"),
        ("len(items) >= LIMIT and not items[0]", "(not items[0])"),
        ("not items[0]", "(items[0])"),
        ('raise ValueError(f"{more + 1} more")', "pass"),
        ("items.append(more)", "pass"),
        ("return min(items)", "return None"),
        ("min", "(max)"),
    } <= changes
    assert not any("more" in before and "log" in before for before, _ in changes)
    assert all(mutant.line > 4 for mutant in found), "neither constants of the module nor docstrings are changed"


def test_every_room_has_its_files_and_tests() -> None:
    for name, area in AREAS.items():
        assert area.paths(TOP), name
        assert area.test_paths(TOP), name
