"""Pages of a list of which the node gives the newest rows (`Method.newest`): it is read on until a page is full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import UNSET

from ...protocols.errors import InvalidRequest
from ...protocols.method import Method
from .listing import Page

MAX_READS: Final = 10
"""Lists that are read for one answer; it says where to go on."""
NEWEST_FIRST: Final = "-created_at"


async def read_page(
    method: Method,
    ask: Callable[[Mapping[str, Any]], Awaitable[Sequence[Any]]],
    arguments: Mapping[str, Any],
    page: Page,
) -> Any:
    """Return a page of the rows that `ask` lists; in another order than `NEWEST_FIRST` it is of the newest.

    Raises: InvalidRequest for a cursor that is no time; what `ask` raises.
    """
    wanted: dict[str, Any] = {}
    last: Any = None
    arguments = _from_cursor(arguments, page)
    for _ in range(MAX_READS):
        found = await ask(arguments)
        wanted |= {row.id: row for row in found if page.wants(row)}
        last = found[-1] if len(found) == method.newest else None
        full = page.limit is not None and len(wanted) > page.limit + 1
        if last is None or (full and page.sort == NEWEST_FIRST) or last.created_at == arguments.get("until"):
            break
        arguments = {**arguments, "until": last.created_at}
    answer = page.of(method.answer(**{page.listing.key: list(wanted.values())}))
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
