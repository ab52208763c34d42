"""The records that we keep for others: validated, numbered, bounded in number, size and age."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

MAX_RECORDS: Final = 1024
MAX_KEY: Final = 256
MAX_VALUE: Final = 4096
KEPT: Final = 24 * 3600.0
"""Seconds; whose record it is puts it again long before."""

Validate: TypeAlias = Callable[[bytes, bytes], int | None]
"""The number of a record (a higher one is newer), None if the value is not good for its key."""


@dataclass(frozen=True, slots=True)
class Kept:
    """`until` is on the clock that the store is asked with."""

    value: bytes
    number: int
    until: float


class RecordStore:
    """`now` is any steady clock, in seconds."""

    def __init__(self, validate: Validate) -> None:
        self._validate = validate
        self._kept: dict[bytes, Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: bytes, value: bytes, now: float) -> bool:
        """Whether it is kept: it is valid, not older than what we have, and there is room."""
        number = self.number(key, value)
        if number is None:
            return False
        known = self._kept.get(key)
        if known is not None and known.number > number:
            return False
        if known is None and len(self._kept) >= MAX_RECORDS:
            self._kept = {key: kept for key, kept in self._kept.items() if kept.until > now}
            if len(self._kept) >= MAX_RECORDS:
                return False
        self._kept[key] = Kept(value, number, now + KEPT)
        return True

    def get(self, key: bytes, now: float) -> bytes | None:
        kept = self._kept.get(key)
        return kept.value if kept is not None and kept.until > now else None

    def number(self, key: bytes, value: bytes) -> int | None:
        """The record's number, None if it is not valid."""
        if len(key) > MAX_KEY or len(value) > MAX_VALUE:
            return None
        return self._validate(key, value)
