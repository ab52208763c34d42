"""The parameters of every listing: `limit`, `after`, `sort`, and a filter for each field of its rows that is text.

They are applied to the answer of the service, which holds what the caller may see. A cursor is the place of a row in
the order, not a number of rows: rows that come and go meanwhile neither repeat nor hide others.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import translate
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta

from ...protocols.errors import InvalidRequest
from ...protocols.listing import MAX_LIMIT, ListedFields, natural
from ...protocols.reading import convert_query
from ..rest.requests import single

Key = tuple[Any, ...]

_Pattern: Any = Annotated[str, Meta(min_length=1, max_length=256, description="`*` stands for any text")]
_Label = Annotated[str, Meta(min_length=1, max_length=320, pattern="^[^=]")]
_Labels = Annotated[tuple[_Label, ...], Meta(max_length=16, description="KEY or KEY=VALUE, where `*` is any text")]
_Limit: Any = Annotated[int, Meta(ge=1, le=MAX_LIMIT, description="rows in this answer at the most")]
_After: Any = Annotated[str, Meta(min_length=1, max_length=4096, description="`next` of the answer before")]
# What tells the rows of a listing apart, where several are equal in the field that they are sorted by.
_IDENTITY = ("id", "node", "registry", "name", "tag", "digest")


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """A row's place: the order, the row's value in it, and what tells the row from others."""

    sort: str
    value: str | float | None
    identity: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What a request wants of a listing, read and checked."""

    listing: Listing
    matches: Sequence[Callable[[Any], bool]]
    sort: str
    limit: int | None
    after: Cursor | None

    def wants(self, row: Any) -> bool:
        """Return whether the filters let a row pass."""
        return all(match(row) for match in self.matches)

    def of(self, body: Any) -> Any:
        """Return the answer with the rows that are wanted, and with `next` when more follow."""
        key, descending = self.listing.key, self.sort.startswith("-")
        rows = filter(self.wants, getattr(body, key))
        places = sorted(((self._cursor(row), row) for row in rows), key=self._place_of, reverse=descending)
        if self.after is not None:
            last = _place(self.after)
            places = [
                one for one in places if (self._place_of(one) < last if descending else last < self._place_of(one))
            ]
        kept = places[: self.limit]
        more = self.cursor_at(kept[-1][1]) if len(kept) < len(places) else UNSET
        return msgspec.structs.replace(body, **{key: [row for _, row in kept], "next": more})

    def cursor_at(self, row: Any) -> str:
        """Return the `next` of an answer that ends with a row."""
        return _encode(self._cursor(row))

    def _cursor(self, row: Any) -> Cursor:
        value = getattr(row, self.sort.removeprefix("-"))
        if isinstance(value, datetime):
            value = value.timestamp()
        elif value is not None:
            value = str(value) if isinstance(value, str) else float(value)
        return Cursor(self.sort, value, tuple(str(getattr(row, name)) for name in self.listing.identity))

    @staticmethod
    def _place_of(one: tuple[Cursor, Any]) -> Key:
        return _place(one[0])


class Listing(ListedFields):
    """A listing whose answer is `body`: a Struct with its rows in the first field, and `next`.

    `query` holds the parameters that the service itself takes.
    """

    def __init__(self, body: type[msgspec.Struct], query: type[msgspec.Struct] | None = None) -> None:
        super().__init__(body, query)
        self.default_sort = "name" if "name" in self.kinds else "-created_at"
        self.identity = [name for name in _IDENTITY if name in self.kinds]
        self._service_query = query
        of_service = msgspec.structs.fields(query) if query is not None else ()
        self.query = self._parameters(body.__name__, of_service)
        self.whole = Page(self, (), self.default_sort, None, None)

    def _parameters(self, name: str, of_service: Iterable[Any]) -> type[msgspec.Struct]:
        """Return the Struct of all parameters, which OpenAPI shows and a request is read as."""
        sort: Any = Annotated[
            str, Meta(max_length=64, pattern=f"^-?({'|'.join(self.sorts)})$", description="-x: descending")
        ]
        fields: list[Any] = [(field.name, field.type, field.default) for field in of_service]
        fields += [("limit", _Limit | None, None), ("after", _After | None, None), ("sort", sort | None, None)]
        fields += [("label", _Labels, ())] if self.has_labels else []
        kinds: dict[str, Any] = {field: _Pattern if kind is str else kind for field, kind in self.filters.items()}
        fields += [(field, kind | None, None) for field, kind in kinds.items()]
        return msgspec.defstruct(f"{name}Query", fields, frozen=True, kw_only=True, forbid_unknown_fields=True)

    def read(self, pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, str], Page | None]:
        """Return the parameters of the service, and the page that is wanted; None when no parameter says so.

        Raises: InvalidRequest naming the parameter that is wrong.
        """
        if not pairs:
            return {}, None
        found = single([(name, value) for name, value in pairs if name != "label" or not self.has_labels])
        labels = [value for name, value in pairs if name == "label"] if self.has_labels else []
        asked = convert_query({**found, **({"label": labels} if labels else {})}, self.query)
        theirs = self._service_query.__struct_fields__ if self._service_query is not None else ()
        of_service = {name: value for name, value in found.items() if name in theirs}
        if len(of_service) == len(pairs):
            return of_service, None
        return of_service, self._page(asked, labels)

    def _page(self, asked: Any, labels: Iterable[str]) -> Page:
        wanted = {name: getattr(asked, name) for name in self.filters}
        matches = [_matching(name, str(value)) for name, value in wanted.items() if value is not None]
        sort = asked.sort or self.default_sort
        if sort.removeprefix("-") not in self.sorts:  # a pattern that ends in `$` lets a line end pass
            raise InvalidRequest("sort: is no field of these rows", path="sort")
        after = None if asked.after is None else self._decode(asked.after, sort)
        return Page(self, [*matches, *map(_labelled, labels)], sort, asked.limit, after)

    def _decode(self, text: str, sort: str) -> Cursor:
        try:
            cursor = msgspec.json.decode(urlsafe_b64decode(text.encode("ascii")), type=Cursor)
        except (ValueError, msgspec.MsgspecError):
            raise InvalidRequest("after: is not the `next` of an answer", path="after") from None
        if cursor.sort != sort or len(cursor.identity) != len(self.identity):
            raise InvalidRequest("after: is of another listing, or of another `sort`", path="after")
        return cursor


def _matching(name: str, pattern: str) -> Callable[[Any], bool]:
    match = _pattern(pattern)
    return lambda row: (value := getattr(row, name)) is not None and match(str(value)) is not None


def _labelled(wanted: str) -> Callable[[Any], bool]:
    key, equals, pattern = wanted.partition("=")
    match = _pattern(pattern if equals else "*")
    return lambda row: key in row.labels and match(row.labels[key]) is not None


def _pattern(text: str) -> Callable[[str], Any]:
    """Return what matches `text`; `translate` makes a pattern that never goes back, so that no text takes long."""
    return re.compile(translate(text.replace("[", "[[]").replace("?", "[?]"))).match


def _encode(cursor: Cursor) -> str:
    return urlsafe_b64encode(msgspec.json.encode(cursor)).decode()


def _place(cursor: Cursor) -> Key:
    """Return what rows are ordered by. What is not known comes last, in a descending order too."""
    value = cursor.value
    if value is None:
        return (-1 if cursor.sort.startswith("-") else 2, (), cursor.identity)
    return (1, natural(value), cursor.identity) if isinstance(value, str) else (0, (value,), cursor.identity)
