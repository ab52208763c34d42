"""What every test gets for free: unexpected log errors fail it, and leaks can be counted."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
import structlog

from tests.leaks import held, nothing_leaks

pytest_plugins = ["pytester"]

_PROVOKE = """
import logging
import pytest
import structlog

def test_quiet():
    structlog.get_logger().warning("only a warning")

def test_ours():
    structlog.get_logger().error("ours went wrong", vm="web")

def test_theirs():
    logging.getLogger("theirs").error("theirs went wrong")

@pytest.mark.expects_errors
def test_announced():
    structlog.get_logger().error("expected")
    logging.getLogger("theirs").error("expected")
"""


@pytest.mark.expects_errors  # the inner run shares our loggers
def test_an_unexpected_error_in_the_log_fails_a_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(Path(__file__).parents[1].joinpath("conftest.py").read_text())
    pytester.makepyfile(_PROVOKE)
    result = pytester.runpytest_inprocess("-p", "no:trio", "-p", "no:schemathesis")
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*ours went wrong*", "*theirs went wrong*"])


_LOSE = """
import socket

def test_loses_a_socket():
    near, far = socket.socketpair()
    cycle = [near]
    cycle.append(cycle)
    far.close()

def test_after_it():
    pass
"""


def test_a_socket_without_an_owner_fails_the_test_that_lost_it(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(Path(__file__).parents[1].joinpath("conftest.py").read_text())
    pytester.makepyfile(_LOSE)
    plugins = [word for name in ("trio", "schemathesis", "hypothesispytest") for word in ("-p", f"no:{name}")]
    result = pytester.runpytest_subprocess(*plugins, "-W", "error")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["ERROR *::test_loses_a_socket*"])


def test_leaks_are_seen() -> None:
    with nothing_leaks():
        assert held() == held()
    reading, writing = os.pipe()
    try:
        with pytest.raises(AssertionError), nothing_leaks():
            extra = os.dup(reading)
    finally:
        for descriptor in (reading, writing, extra):
            os.close(descriptor)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    with pytest.raises(AssertionError), nothing_leaks():
        thread.start()
    stop.set()
    thread.join()


@pytest.mark.expects_errors
def test_an_announced_error_is_no_failure() -> None:
    structlog.get_logger().error("on purpose")
    logging.getLogger(__name__).error("on purpose")
