"""What goes to stdout (data) and to stderr (all else), and how values look to people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
import msgspec

Column = tuple[str, Callable[[Any], Any]]
Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def peer_option(command: Command) -> Command:
    return click.option(
        "--on", "peer", metavar="PEER", help="Work on a peer: its name, its ID or the beginning of it."
    )(command)


def say(message: str) -> None:
    """A message for the person at the terminal."""
    click.echo(message, err=True)


def print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(rows: Iterable[Any], columns: Sequence[Column], *, as_json: bool) -> None:
    """One line a row under one line of headings; with `as_json`, the rows as they are."""
    rows = list(rows)
    if as_json:
        return print_json(rows)
    lines = [[heading for heading, _ in columns], *([_cell(show(row)) for _, show in columns] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return None


def print_fields(value: Any, fields: Sequence[Column], *, as_json: bool) -> None:
    """One line a field, the ones that say nothing left out."""
    if as_json:
        return print_json(value)
    shown = [(name, _cell(show(value))) for name, show in fields]
    width = max(len(name) for name, _ in shown) + 1
    for name, cell in shown:
        if cell != "-":
            click.echo(f"{name + ':':<{width}} {cell}")
    return None


def _cell(value: Any) -> str:
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
    """A size in bytes as people read it."""
    if amount is None:
        return None
    units = iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while amount >= 1024 and unit != "TiB":
        amount, unit = amount / 1024, next(units)
    return f"{amount:.0f} {unit}" if amount >= 10 or amount == int(amount) else f"{amount:.1f} {unit}"


def duration(seconds: int | None) -> str | None:
    """A duration as people read it: its two largest units."""
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


def on_terminal() -> bool:
    return sys.stderr.isatty()
