"""The options that every listing has: `--json --filter --sort --columns --limit`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec
from msgspec import UNSET

from ...protocols.errors import InvalidRequest
from ...protocols.listing import MAX_LIMIT, ListedFields, natural
from ..exchange import Request, with_query
from .output import Column, cell, print_json, print_table

if TYPE_CHECKING:
    from .node import NodeClient

Command = TypeVar("Command", bound=Callable[..., Any])
_PLAIN: Final = re.compile(r"[a-z0-9*._:/@+=-]{1,256}")
"""What the node matches as we do, who take letters of any case for equal, and the patterns of a shell."""


class Listing(msgspec.Struct, frozen=True):
    """What a caller wants of a listing. A field is a column's heading or a key of the rows' JSON, in any case."""

    filters: Sequence[str] = ()
    sort: str | None = None
    columns: str | None = None
    as_json: bool = False
    limit: int | None = None

    def fetch(self, client: NodeClient, request: Request, peer: str | None = None) -> Any:
        """Return the answer to a listing, asked for with what of this the node knows, in pages up to the limit.

        What the node does not know (headings of columns, patterns of a shell) is left for `show`; a node of a former
        version knows nothing of this.
        """
        fields = ListedFields(request.answer)
        query, whole = self._query(fields)
        try:
            return self._ask(client, request, peer, fields, query, whole=whole)
        except InvalidRequest as error:
            if error.details.get("path") not in {*query, "limit"}:
                raise
            return client.fetch(request, peer)

    def _ask(
        self,
        client: NodeClient,
        request: Request,
        peer: str | None,
        fields: ListedFields,
        query: dict[str, Any],
        *,
        whole: bool,
    ) -> Any:
        if self.limit is None or not whole:
            return client.fetch(with_query(request, query), peer)
        answer = client.fetch(with_query(request, {**query, "limit": min(self.limit, MAX_LIMIT)}), peer)
        rows = list(getattr(answer, fields.key))
        following = answer.next
        while following is not UNSET and len(rows) < self.limit:
            more = {"limit": min(self.limit - len(rows), MAX_LIMIT), "after": following}
            page = client.fetch(with_query(request, {**query, **more}), peer)
            rows += getattr(page, fields.key)
            following = page.next
        return msgspec.structs.replace(answer, **{fields.key: rows})

    def _query(self, fields: ListedFields) -> tuple[dict[str, Any], bool]:
        """Return the parameters that the node understands as we do, and whether they say all that is wanted."""
        query: dict[str, Any] = {}
        whole = True
        for wanted in self.filters:
            name, _, pattern = wanted.partition("=")
            if name == "label" and fields.has_labels and _PLAIN.fullmatch(pattern):
                query.setdefault("label", []).append(pattern)
            elif name not in query and _filters(fields.filters.get(name), pattern):
                query[name] = pattern
            else:
                whole = False
        if self.sort is not None:
            if self.sort.removeprefix("-") in fields.sorts:
                query["sort"] = self.sort
            else:
                whole = False
        return query, whole

    def show(self, rows: Sequence[Any], columns: Sequence[Column]) -> None:
        """Print the rows that are wanted. Raises: UsageError for a field that there is not."""
        for wanted in self.filters:
            rows = _matching(rows, columns, wanted)
        if self.sort:
            value = _field(self.sort.removeprefix("-"), rows, columns)
            known = [row for row in rows if value(row) is not None]
            unknown = [row for row in rows if value(row) is None]
            rows = sorted(known, key=lambda row: _sort_key(value(row)), reverse=self.sort.startswith("-")) + unknown
        rows = rows[: self.limit]
        if self.as_json:
            return print_json(rows)
        if self.columns:
            names = [name.strip() for name in self.columns.split(",")]
            columns = [(name.upper(), _shown(name, rows, columns)) for name in names]
        return print_table(rows, columns)


def _filters(kind: Any, pattern: str) -> bool:
    """Return whether the node filters a field of this type by the pattern as we do."""
    if kind is None or kind is str:
        return kind is str and _PLAIN.fullmatch(pattern) is not None
    return pattern in set(kind)


def listing_options(command: Command) -> Command:
    """Give a command these options as its parameter `listing`."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.option("--columns", metavar="A,B", help="Show these columns alone, in this order.")
    @click.option("--limit", type=click.IntRange(1, 100000), metavar="N", help="Show the first N rows alone.")
    @click.option("--sort", metavar="COLUMN", help="Sort by a column; -COLUMN for the reverse.")
    @click.option(
        "--filter", "filters", multiple=True, metavar="FIELD=VALUE",
        help="Show matching rows alone; * in VALUE matches anything; label=K=V; repeatable.",
    )  # fmt: skip
    @functools.wraps(command)
    def wrapped(
        *arguments: Any,
        filters: Sequence[str],
        sort: str | None,
        columns: str | None,
        as_json: bool,
        limit: int | None,
        **options: Any,
    ) -> Any:
        return command(*arguments, listing=Listing(filters, sort, columns, as_json, limit), **options)

    return wrapped  # type: ignore[return-value]  # click calls it by name with what the options say


def _matching(rows: Sequence[Any], columns: Sequence[Column], wanted: str) -> list[Any]:
    from fnmatch import fnmatchcase

    name, equals, pattern = wanted.partition("=")
    if not equals:
        raise click.UsageError(f"--filter takes FIELD=VALUE, not '{wanted}'")
    if name == "label":
        key, _, pattern = pattern.partition("=")
        return [row for row in rows if key in row.labels and fnmatchcase(row.labels[key], pattern or "*")]
    value = _field(name, rows, columns)
    return [row for row in rows if fnmatchcase(cell(value(row)).lower(), pattern.lower())]


def _shown(name: str, rows: Sequence[Any], columns: Sequence[Column]) -> Callable[[Any], Any]:
    """Return what shows a column: as its table shows it, else the field as it is."""
    by_heading = {heading.lower(): show for heading, show in columns}
    return by_heading.get(name.lower().replace("_", " ")) or _field(name, rows, columns)


def _field(name: str, rows: Sequence[Any], columns: Sequence[Column]) -> Callable[[Any], Any]:
    """Return what reads a field of a row; the field itself comes before what its column shows, so that sizes sort."""
    key = name.lower().replace("-", "_").replace(" ", "_")
    if rows and key in _keys(rows[0]):
        return lambda row: row[key] if isinstance(row, dict) else getattr(row, key)
    by_heading = {heading.lower().replace(" ", "_"): show for heading, show in columns}
    if key in by_heading:
        return by_heading[key]
    if not rows:
        return lambda row: None
    known = [*by_heading, *(field for field in _keys(rows[0]) if field not in by_heading)]
    raise click.UsageError(f"there is no column '{name}'; there are: {', '.join(known)}")


def _keys(row: Any) -> Sequence[str]:
    return list(row) if isinstance(row, dict) else row.__struct_fields__


def _sort_key(value: Any) -> tuple[bool, Any]:
    """Order numbers by value, all else as the node orders text."""
    number = isinstance(value, int | float)
    return not number, value if number else natural(cell(value))
