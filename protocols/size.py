"""Sizes as people write them: `512M`, `2G`, `1.5T`. A unit is a power of 1024, and is never left out."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated

from msgspec import Meta

PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,3})?[KMGTkmgt]([iI]?[bB])?$"
SizeText = Annotated[str, Meta(pattern=PATTERN, description='a number and a unit: "512M", "2G"', examples=["2G"])]

_WRITTEN = re.compile(PATTERN.removeprefix("^").removesuffix("$"))
_UNITS = "BKMGT"
MIB, GIB = 1 << 20, 1 << 30


def parse_size(text: str) -> int:
    """The bytes that `text` stands for; a part of a byte counts as one.

    Raises: ValueError.
    """
    if not _WRITTEN.fullmatch(text):
        shown = text if len(text) <= 20 else f"{text[:20]}…"
        raise ValueError(f"'{shown}' is not a size; write a number and a unit, such as 512M or 2G")
    number = text.rstrip("iIbBKMGTkmgt")
    exponent = _UNITS.index(text[len(number)].upper())
    return math.ceil(Decimal(number) * (1 << 10 * exponent))


def exact_size(amount: int) -> str:
    """A size that `parse_size` reads back as the very same, in the largest unit that divides it."""
    exponent = 1
    while exponent < 4 and amount % 1024 ** (exponent + 1) == 0 and amount:
        exponent += 1
    if amount % 1024**exponent:
        raise ValueError(f"{amount} bytes are not a whole number of KiB")
    return f"{amount // 1024**exponent}{_UNITS[exponent]}"


def short_size(amount: int) -> str:
    """About how much it is: one decimal where there is one to tell, in the unit that makes the number short."""
    exponent = 1
    while exponent < 4 and amount >= 1024 ** (exponent + 1):
        exponent += 1
    return f"{amount / 1024**exponent:.1f}".removesuffix(".0") + _UNITS[exponent]
