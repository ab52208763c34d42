"""The options that every listing has: `--json --filter --sort --columns`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import msgspec

from .output import Column, cell, print_json, print_table

Command = TypeVar("Command", bound=Callable[..., Any])


class Listing(msgspec.Struct, frozen=True):
    """What a caller wants of a listing. A field is a column's heading or a key of the rows' JSON, in any case."""

    filters: Sequence[str] = ()
    sort: str | None = None
    columns: str | None = None
    as_json: bool = False

    def show(self, rows: Sequence[Any], columns: Sequence[Column]) -> None:
        """Print the rows that are wanted. Raises: UsageError for a field that there is not."""
        for wanted in self.filters:
            rows = _matching(rows, columns, wanted)
        if self.sort:
            value = _field(self.sort.removeprefix("-"), rows, columns)
            rows = sorted(rows, key=lambda row: _sort_key(value(row)), reverse=self.sort.startswith("-"))
        if self.as_json:
            return print_json(rows)
        if self.columns:
            names = [name.strip() for name in self.columns.split(",")]
            columns = [(name.upper(), _shown(name, rows, columns)) for name in names]
        return print_table(rows, columns)


def listing_options(command: Command) -> Command:
    """Give a command these options as its parameter `listing`."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.option("--columns", metavar="A,B", help="Show these columns alone, in this order.")
    @click.option("--sort", metavar="COLUMN", help="Sort by a column; -COLUMN for the reverse.")
    @click.option(
        "--filter", "filters", multiple=True, metavar="FIELD=VALUE",
        help="Show matching rows alone; * in VALUE matches anything; label=K=V; repeatable.",
    )  # fmt: skip
    @functools.wraps(command)
    def wrapped(
        *arguments: Any, filters: Sequence[str], sort: str | None, columns: str | None, as_json: bool, **options: Any
    ) -> Any:
        return command(*arguments, listing=Listing(filters, sort, columns, as_json), **options)

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


def _sort_key(value: Any) -> tuple[bool, bool, Any]:
    """Order numbers and times by value, all else as text; what is not known comes last."""
    number = isinstance(value, int | float)
    return value is None, not number, value if number else cell(value)
