"""The command line of the long run, which nothing else calls."""

from __future__ import annotations

from tests.hostile.trial import parser


def test_how_long_is_an_option() -> None:
    assert parser().parse_args(["--minutes", "0.5"]).minutes == 0.5
    assert parser().parse_args([]).minutes == 5
