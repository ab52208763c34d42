"""For every test: an error in the log that it did not announce makes it fail, for somebody will read it at night.

A test that provokes one says `@pytest.mark.expects_errors`.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog


class _Errors(logging.Handler):
    """Keeps the error lines of the standard library's loggers and, as a structlog processor, of ours."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()}")

    def __call__(self, logger: Any, level: str, event: Any) -> Any:
        if level in {"error", "exception", "critical"}:
            self.lines.append(str(event))
        return event


@pytest.fixture(autouse=True)
def _no_unexpected_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    structlog.configure(
        processors=[errors, structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    yield
    structlog.reset_defaults()
    logging.getLogger().removeHandler(errors)
    if errors.lines and not request.node.get_closest_marker("expects_errors"):
        pytest.fail("unexpected errors in the log:\n" + "\n".join(errors.lines), pytrace=False)


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder of tmpfs where the machine has room there: for thousands of writes whose fsync proves nothing."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 8 << 30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="twinshare-test-") as folder:
        yield Path(folder)
