"""For every test: an error in the log that it did not announce makes it fail, for somebody will read it at night.

A test that provokes one says `@pytest.mark.expects_errors`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
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
