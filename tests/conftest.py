"""For every test: an error in the log that it did not announce makes it fail, for somebody will read it at night.

A test that provokes one says `@pytest.mark.expects_errors`.
"""

from __future__ import annotations

import gc
import logging
import shutil
import sys
import tempfile
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

# A busy machine fails no example, and each run has the same ones: --hypothesis-profile=default looks for others.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

SLOW_FILES = Path(__file__).with_name("slow_files.txt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out what is marked system, and tests/slow_files.txt")


def slow_files() -> list[str]:
    """Return the paths of the slow files, from the top of the tree."""
    return [line for line in SLOW_FILES.read_text().splitlines() if not line.startswith("#")]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--quick") or collection_path.suffix != ".py":
        return None
    return collection_path.relative_to(config.rootpath).as_posix() in slow_files() or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    left_out = [item for item in items if item.get_closest_marker("system")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """What the imports made is not searched for garbage after each test."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what failed beneath the groups of nested nurseries, of which a traceback shows ten."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, BaseExceptionGroup):
        causes = ["".join(traceback.format_exception(cause)[-4:]) for cause in _causes(call.excinfo.value)]
        report.sections.append(("What failed", "\n".join(causes)))
    return report


def _causes(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _causes(each)
        else:
            yield each


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
    gc.collect()  # a socket or coroutine that nobody owned fails the test that lost it, and not some later one
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
