"""The critical areas: their files, and the tests that must notice every change in them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Area(NamedTuple):
    """`files` and `tests` are patterns from the top of the checkout."""

    files: tuple[str, ...]
    tests: tuple[str, ...]

    def paths(self, top: Path) -> list[Path]:
        """Return the files of the area, from `top`. Raises: FileNotFoundError for a pattern that names none."""
        return [path for pattern in self.files for path in _found(top, pattern)]

    def test_paths(self, top: Path) -> list[str]:
        """Return what pytest is to run. Raises: FileNotFoundError for a pattern that names nothing."""
        return [str(path) for pattern in self.tests for path in _found(top, pattern)]


def _found(top: Path, pattern: str) -> list[Path]:
    found = sorted(path.relative_to(top) for path in top.glob(pattern))
    if not found:
        raise FileNotFoundError(f"no file is called {pattern}")
    return found


AREAS = {
    "membership": Area(
        ("agent/p2p/membership*.py", "protocols/membership/*.py"),
        (
            "tests/agent/p2p/test_membership*.py",
            "tests/agent/p2p/test_roles.py",
            "tests/protocols/test_membership_*.py",
        ),
    ),
    "forwards": Area(
        ("agent/vm/forwards.py", "agent/vm/host_ports.py", "agent/vm/operations/add_forward.py", "agent/relays.py"),
        (
            "tests/agent/test_bounds.py",
            "tests/agent/test_create_forwards.py",
            "tests/agent/test_host_ports.py",
            "tests/agent/test_relay*.py",
            "tests/agent/test_faults.py",
        ),
    ),
    "captures": Area(
        ("agent/image_operations/capture.py",),
        ("tests/agent/test_captures.py", "tests/agent/test_bounds.py", "tests/agent/test_images.py"),
    ),
    "muxer": Area(("agent/p2p/libp2p/yamux/*.py",), ("tests/agent/p2p/test_yamux_*.py",)),
    "journal": Area(
        ("agent/journal/*.py",),
        (
            "tests/agent/test_journal.py",
            "tests/agent/test_account_limits.py",
            "tests/agent/test_full_disk.py",
            "tests/agent/test_operation_classes.py",
            "tests/agent/test_bounds.py",
            "tests/agent/test_node.py",
            "tests/agent/test_undo.py",
            "tests/agent/test_faults.py",
        ),
    ),
    "guard": Area(
        ("api/rest/guard.py", "agent/token_buckets.py"), ("tests/api/test_guard*.py", "tests/api/test_limits.py")
    ),
}
