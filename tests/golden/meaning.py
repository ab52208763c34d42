"""Compares what this version decodes with what a golden file says that it means."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

import msgspec


def differences(found: Any, golden: Any, where: str = "$") -> list[str]:
    """Where `found` does not mean what `golden` says. A later version may know more fields; none may be lost."""
    if isinstance(golden, dict):
        values = _fields(found)
        if values is None:
            return [f"{where}: {found!r} is no object"]
        lost = [f"{where}.{name} is lost" for name in golden if name not in values]
        kept = [name for name in golden if name in values]
        return lost + [line for name in kept for line in differences(values[name], golden[name], f"{where}.{name}")]
    if isinstance(golden, list):
        if not isinstance(found, list | tuple) or len(found) != len(golden):
            return [f"{where}: {found!r} is not as long as {golden!r}"]
        pairs = enumerate(zip(found, golden, strict=True))
        return [line for number, pair in pairs for line in differences(*pair, f"{where}[{number}]")]
    plain = _plain(found)
    return [] if plain == golden else [f"{where}: {plain!r}, not {golden!r}"]


def _fields(value: Any) -> dict[str, Any] | None:
    """By the names that the wire has for them."""
    if isinstance(value, msgspec.Struct):
        return {field.encode_name: getattr(value, field.name) for field in msgspec.structs.fields(value)}
    return value if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value
