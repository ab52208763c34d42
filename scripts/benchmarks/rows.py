"""A benchmark's result: what was measured, against which baseline or limit, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One figure. `baseline` is of the same run and unit; `limit` bounds the ratio, else the value."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.baseline if self.baseline else None

    @property
    def kept(self) -> bool | None:
        """Whether the limit is kept; None when there is none."""
        if self.limit is None:
            return None
        return (self.value if self.ratio is None else self.ratio) <= self.limit


def as_json(results: dict[str, list[Row]]) -> bytes:
    document = {
        name: [{**msgspec.to_builtins(row), "ratio": row.ratio, "kept": row.kept} for row in rows]
        for name, rows in results.items()
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2)


def as_table(rows: Iterable[Row]) -> str:
    head = ("", "value", "unit", "baseline", "ratio", "limit", "kept")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 2) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    kept = {None: "", True: "yes", False: "NO"}[row.kept]
    return (row.name, _figure(row.value), row.unit, _figure(row.baseline), _figure(row.ratio), _figure(row.limit), kept)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
