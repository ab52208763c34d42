"""A list between peers goes in pages, each a frame of its own: no list is too large for who reads it.

Who reads pages gives the call credit, one for each page; each page but the last is an item of the call, the last one is
its result. A node of the first release knows no pages: it ignores the credit and answers with the whole list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

MAX_PAGE: Final = 128 << 10
"""Bytes of a page that has more than one row."""
MAX_ROW: Final = 512 << 10
"""Bytes of one row."""
PAGES_AHEAD: Final = 4
"""Pages that may be sent before the first one is read."""
MAX_LIST: Final = 32 << 20
"""Bytes of all pages of a list."""
MAX_ROWS: Final = 10_000
"""Rows of a list."""

_pack = msgspec.msgpack.Encoder().encode


def pack_pages(rows: Iterable[Any]) -> Iterator[bytes]:
    """Yield the rows as msgpack arrays, at least one; a page is packed when it is asked for."""
    page: list[msgspec.Raw] = []
    size = 0
    for row in rows:
        packed = _pack_row(row)
        if page and size + len(packed) > MAX_PAGE:
            yield _pack(page)
            page, size = [], 0
        page.append(msgspec.Raw(packed))
        size += len(packed)
    yield _pack(page)


def _pack_row(row: Any) -> bytes:
    """Pack a row, without its largest optional fields when it would be too large for a frame."""
    packed = _pack(row)
    while len(packed) > MAX_ROW and isinstance(row, msgspec.Struct):
        sizes = {name: len(_pack(getattr(row, name))) for name in row.__struct_fields__}
        optional = {field.name: field for field in msgspec.structs.fields(row) if not field.required}
        largest = max(optional, key=lambda name: sizes[name], default="")
        if not largest or sizes[largest] <= MAX_ROW // 64:
            break
        field = optional[largest]
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        row = msgspec.structs.replace(row, **{largest: default})
        packed = _pack(row)
    return packed
