"""Which fields of its rows the parameters of a listing may name, for the node and for its clients.

A listing's answer is a Struct with its rows in the first field.
"""

from __future__ import annotations

import re
from datetime import datetime
from types import NoneType
from typing import Any, Final, get_args, get_type_hints

import msgspec

OWN: Final = ("limit", "after", "sort", "label")
"""The parameters that are no field of a row."""
MAX_LIMIT: Final = 1000
_DIGITS = re.compile(r"([0-9]+)")


class ListedFields:
    """The fields of the rows of `body`. `query` holds the parameters that the service itself takes.

    `filters` has the fields that are text or one of a few words, with their types.
    """

    def __init__(self, body: type[msgspec.Struct], query: type[msgspec.Struct] | None = None) -> None:
        self.key = body.__struct_fields__[0]
        [row] = get_args(get_type_hints(body)[self.key])
        self.kinds = {name: _kind(hint) for name, hint in get_type_hints(row).items() if name in row.__struct_fields__}
        self.sorts = [name for name, kind in self.kinds.items() if _is_a(kind, str, int, float, datetime)]
        taken = {*OWN, *(query.__struct_fields__ if query is not None else ())}
        self.filters = {name: kind for name, kind in self.kinds.items() if _is_a(kind, str) and name not in taken}
        self.has_labels = "labels" in self.kinds


def natural(text: str) -> tuple[Any, ...]:
    """Order text without regard to case, and the numbers in it by value: `vm-9` before `vm-10`."""
    parts = _DIGITS.split(text.casefold())
    return tuple((len(part.lstrip("0")), part.lstrip("0")) if n % 2 else part for n, part in enumerate(parts))


def _kind(hint: Any) -> Any:
    """Return the type of a field, without None and what bounds it."""
    if hasattr(hint, "__metadata__"):
        return _kind(hint.__origin__)
    options = [option for option in get_args(hint) if option is not NoneType]
    return _kind(options[0]) if NoneType in get_args(hint) and len(options) == 1 else hint


def _is_a(kind: Any, *kinds: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, kinds)
