"""Output: data on stdout, all else on stderr; tables, fields and values as people read them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import click
import msgspec

Column = tuple[str, Callable[[Any], Any]]
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that turn the direction of text, and bytes that are not UTF-8."""
_MIN_WIDTH = 4
_READABLE = 6
"""Characters of a column that tell something; one that would get fewer is left out."""
_GAP = "  "


def printable(text: str) -> str:
    """Return text in which nothing moves the cursor: guests and peers choose names, and a terminal obeys them."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def say(message: str) -> None:
    """Print a message for the person at the terminal."""
    click.echo("\n".join(map(printable, message.split("\n"))), err=True)


def on_terminal() -> bool:
    return sys.stderr.isatty()


def print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(rows: Iterable[Any], columns: Sequence[Column]) -> None:
    """Print one line a row under one line of headings, cut to the terminal's width where there is one."""
    lines = [
        [heading for heading, _ in columns],
        *([printable(cell(show(row))) for _, show in columns] for row in rows),
    ]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    if sys.stdout.isatty():
        limit = os.get_terminal_size(sys.stdout.fileno()).columns
        widths = fit(widths[: readable(widths, limit)], limit)
    for line in lines:
        shown = zip(line, widths, strict=False)
        click.echo(_GAP.join(_cut(text, width).ljust(width) for text, width in shown).rstrip())
    if left_out := ", ".join(lines[0][len(widths) :]):
        say(f"no room for the columns {left_out}; --columns and --json show them")


def readable(widths: Sequence[int], limit: int) -> int:
    """Return how many of the columns fit into `limit` characters with enough of each to be read, one at least.

    The first stays whole.
    """
    taken = widths[0]
    for at, width in enumerate(widths[1:], 1):
        taken += len(_GAP) + min(width, _READABLE)
        if taken > limit:
            return at
    return len(widths)


def fit(widths: Sequence[int], limit: int) -> list[int]:
    """Return column widths that fit into `limit` characters: the widest is cut first, none below a minimum.

    The first column stays whole: it is what other commands take.
    """
    first, *others = widths
    excess = first + sum(others) + len(_GAP) * len(others) - limit
    while excess > 0 and others and (widest := max(others)) > _MIN_WIDTH:
        others[others.index(widest)] -= 1
        excess -= 1
    return [first, *others]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def print_fields(value: Any, fields: Sequence[Column], *, as_json: bool) -> None:
    """Print one line a field; those without a value are left out."""
    if as_json:
        return print_json(value)
    shown = [(name, printable(cell(show(value)))) for name, show in fields]
    width = max(len(name) for name, _ in shown) + 1
    for name, text in shown:
        if text != "-":
            click.echo(f"{name + ':':<{width}} {text}")
    return None


def cell(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def size(amount: float | None) -> str | None:
    """Return a size in bytes as people read it."""
    if amount is None:
        return None
    units = iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while amount >= 1024 and unit != "TiB":
        amount, unit = amount / 1024, next(units)
    return f"{amount:.0f} {unit}" if amount >= 10 or amount == int(amount) else f"{amount:.1f} {unit}"


def duration(seconds: int | None) -> str | None:
    """Return a duration as people read it: its two largest units."""
    if seconds is None:
        return None
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}h"
    if hours:
        return f"{hours}h {minute}m"
    return f"{minutes}m {second}s" if minutes else f"{second}s"
