"""The reference pages are made from the code, and the links between all pages lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.documents import __main__ as documents
from scripts.documents.links import dead_links
from tests.rules.tree import TOP
from twinshare.protocols.errors import ALL_ERRORS
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods


def test_every_operation_and_error_has_its_line() -> None:
    rest, errors = (documents.PAGES[name]() for name in ("rest.md", "errors.md"))
    for method in all_methods(SERVICES).values():
        assert f"`{method.verb} {method.path.replace('<', '{').replace('>', '}')}`" in rest
    for kind in ALL_ERRORS:
        assert f"`{kind.code}`" in errors


def test_no_link_is_dead() -> None:
    assert dead_links(TOP) == []


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A head\n[ok](#a-head) [gone](docs/gone.md) [none](#none) `[code](x)`\n")
    assert [fault.rpartition(" ")[2] for fault in dead_links(tmp_path)] == ["docs/gone.md", "#none"]


def test_a_stale_page_is_noticed_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(documents, "PAGES", {"page.md": lambda: "# Page\n"})
    assert documents.main(["--check"]) == 1
    assert "page.md: stale" in capsys.readouterr().out
    assert documents.main([]) == 0
    assert documents.main(["--check"]) == 0
