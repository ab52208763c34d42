"""The list of operations, of which the node gives `MAX_LISTED` at a time: read on until a page is full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import UNSET

from ...protocols.bodies import OperationList
from ...protocols.errors import InvalidRequest
from ...protocols.operation import MAX_LISTED, Operation
from .listing import Page

MAX_READS: Final = 10
"""Lists that are read for one answer; it says where to go on."""
NEWEST_FIRST: Final = "-created_at"


async def read_page(
    ask: Callable[[Mapping[str, Any]], Awaitable[list[Operation]]], arguments: Mapping[str, Any], page: Page
) -> OperationList:
    """Return a page of the operations that `ask` lists; in another order than `NEWEST_FIRST` it is of the newest.

    Raises: InvalidRequest for a cursor that is no time; what `ask` raises.
    """
    wanted: dict[str, Operation] = {}
    last: Operation | None = None
    arguments = _from_cursor(arguments, page)
    for _ in range(MAX_READS):
        found = await ask(arguments)
        wanted |= {each.id: each for each in found if page.wants(each)}
        last = found[-1] if len(found) == MAX_LISTED else None
        full = page.limit is not None and len(wanted) > page.limit + 1
        if last is None or (full and page.sort == NEWEST_FIRST) or last.created_at == arguments.get("until"):
            break
        arguments = {**arguments, "until": last.created_at}
    answer: OperationList = page.of(OperationList(operations=list(wanted.values())))
    if answer.next is UNSET and last is not None and page.sort == NEWEST_FIRST:
        return msgspec.structs.replace(answer, next=page.cursor_at(last))
    return answer


def _from_cursor(arguments: Mapping[str, Any], page: Page) -> Mapping[str, Any]:
    """Begin at the cursor, where that is a time. Raises: InvalidRequest."""
    if page.after is None or page.sort != NEWEST_FIRST:
        return arguments
    try:
        at = datetime.fromtimestamp(float(page.after.value or 0), UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest("after: is not the `next` of an answer", path="after") from None
    asked = arguments.get("until")
    return {**arguments, "until": at if asked is None else min(at, asked)}
