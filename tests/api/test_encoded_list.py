"""A list body that is encoded once: always what the rows say now."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from twinshare.api.rest.responses import EncodedList


class Row(msgspec.Struct, frozen=True):
    """A row of a list."""

    name: str


@given(st.lists(st.lists(st.sampled_from([Row("a"), Row("b"), Row("c")])), max_size=8))
def test_whatever_list_came_before_the_body_is_that_of_this_one(lists: list[list[Row]]) -> None:
    encoded = EncodedList("rows")
    for rows in lists:
        assert msgspec.json.decode(encoded.encode(rows)) == {"rows": msgspec.to_builtins(rows)}


def test_a_list_that_did_not_change_is_not_encoded_again() -> None:
    encoded = EncodedList("rows")
    rows = [Row("a"), Row("b")]
    assert encoded.encode(rows) is encoded.encode(list(rows))
