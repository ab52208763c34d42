"""Sizes as text: read back as they were written, never too small, and nothing else is a size."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.protocols.size import GIB, MIB, PATTERN, exact_size, parse_size, short_size

WHOLE = st.integers(min_value=0, max_value=1 << 30).map(lambda kib: kib * 1024)


@given(WHOLE)
def test_an_exact_size_is_read_back_as_the_same(amount: int) -> None:
    assert parse_size(exact_size(amount)) == amount


@given(WHOLE)
def test_an_exact_size_is_in_the_largest_unit_that_divides_it(amount: int) -> None:
    text = exact_size(amount)
    if text[-1] != "T" and amount:
        assert int(text[:-1]) % 1024


@given(st.integers(min_value=1024, max_value=1 << 50))
def test_a_short_size_is_short_and_near(amount: int) -> None:
    text = short_size(amount)
    assert len(text) <= 7
    assert abs(parse_size(text) - amount) <= amount * 0.05 + 52


@given(st.decimals(min_value=0, max_value=999_999_999, places=3, allow_nan=False), st.sampled_from("KMGTkmgt"))
def test_a_part_of_a_byte_counts_as_one(number: object, unit: str) -> None:
    amount = parse_size(f"{number}{unit}")
    exponent = "KMGT".index(unit.upper()) + 1
    assert amount - 1 < float(str(number)) * 1024**exponent + 1e-6 * amount
    assert amount + 1 > float(str(number)) * 1024**exponent - 1e-6 * amount


@given(st.text(max_size=12))
def test_anything_else_is_refused_with_a_sentence(text: str) -> None:
    if not re.fullmatch(PATTERN, text):
        with pytest.raises(ValueError, match="such as 512M or 2G"):
            parse_size(text)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("512M", 512 * MIB), ("2G", 2 * GIB), ("20G", 20 * GIB), ("1.5g", 1536 * MIB), ("64MiB", 64 * MIB),
     ("1gb", GIB), ("1T", 1024 * GIB), ("4K", 4096), ("0.001K", 2), ("0G", 0)],
)  # fmt: skip
def test_what_people_write(text: str, amount: int) -> None:
    assert parse_size(text) == amount


@pytest.mark.parametrize("text", ["", "2", "G", "-1G", "1,5G", "2G\n", " 2G", "2 G", "2P", "1e3M", "2GG", "٢G", "1.G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_as_they_are_printed() -> None:
    assert [exact_size(amount) for amount in (2 * GIB, 512 * MIB, 1536 * MIB, 0)] == ["2G", "512M", "1536M", "0K"]
    shown = [short_size(amount) for amount in (GIB + 200 * MIB, 4 * GIB, 3 << 10, 100)]
    assert shown == ["1.2G", "4G", "3K", "0.1K"]
    with pytest.raises(ValueError, match="whole number"):
        exact_size(1023)
