"""`traceparent`: what is one, and what is left alone."""

from __future__ import annotations

import pytest

from twinshare.protocols.trace import MAX_LENGTH, read_traceparent, trace_fields

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_traceparent_is_read_and_named() -> None:
    assert read_traceparent(TRACE) == TRACE
    assert read_traceparent("cc" + TRACE[2:]) == "cc" + TRACE[2:], "a later version"
    assert read_traceparent("cc" + TRACE[2:] + "-what-comes-later") == "cc" + TRACE[2:]
    assert trace_fields(TRACE) == {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x",
        TRACE.upper(),
        TRACE[:-1],
        TRACE + "-more",
        TRACE + "\n",
        "ff" + TRACE[2:],
        TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        TRACE.replace("b7ad6b7169203331", "0" * 16),
        "cc" + TRACE[2:] + "x",
        "cc" + TRACE[2:] + "-" + "x" * MAX_LENGTH,
    ],
)
def test_what_is_none_is_no_trace(wrong: str) -> None:
    assert read_traceparent(wrong) == ""
