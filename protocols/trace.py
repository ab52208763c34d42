"""The header `traceparent` of the W3C's Trace Context: which trace a request belongs to, and its caller's span.

    00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
Nodes make no spans of their own: they pass on what they get. <https://www.w3.org/TR/trace-context/>
"""

from __future__ import annotations

import re
from typing import Final

MAX_LENGTH: Final = 512
_FORM: Final = re.compile(r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-[0-9a-f]{2}")
_LENGTH: Final = 55


def read_traceparent(text: str) -> str:
    """Return what is understood of a `traceparent`, or "" where it is none: whoever sends a wrong one has no trace.

    A later version may append fields, which are left out.
    """
    found = _FORM.fullmatch(text[:_LENGTH])
    if found is None or len(text) > MAX_LENGTH:
        return ""
    rest = text[_LENGTH:]
    return "" if rest and (found[1] == "00" or not rest.startswith("-")) else found[0]


def trace_fields(traceparent: str) -> dict[str, str]:
    """Return the ID of the trace and of the caller's span, as logs name them."""
    _, trace, span, _ = traceparent.split("-")
    return {"trace_id": trace, "span_id": span}
