"""The retired words of docs/glossary.md do not come back."""

from __future__ import annotations

from pathlib import Path

from scripts.documents.words import GLOSSARY, faults, fixed_names, retired_words, search_tree, words_in
from tests.rules.tree import TOP

TABLE = "| term | meaning | retired words |\n|---|---|---|\n| grace | time | last word, `Place` |\n"


def test_no_retired_word_comes_back() -> None:
    assert faults(search_tree(TOP)) == []


def test_a_retired_word_is_found_in_any_spelling() -> None:
    words = retired_words(TABLE)
    for text in ("a last word", "_LAST_WORDS = 1", "class LastWord:", "its last\nwords"):
        assert words_in(text, words) == {"last word"}, text
    assert words_in("a Place", words) == {"Place"}
    assert words_in("the last wording, a place, Placement, Places", words) == set()


def test_a_name_of_the_wire_is_no_retired_word() -> None:
    rows = '| `"Place"` | a field | frame |\n| `.last_word` | a file | |\n'
    table = f"{TABLE}\n| name | where | our term |\n|---|---|---|\n{rows}"
    words, fixed = retired_words(table), fixed_names(table)
    assert words.keys() == {"last word", "Place"}
    assert words_in(fixed.sub("", 'name="Place", "folder/.last_word"'), words) == set()
    assert words_in(fixed.sub("", "Place, .last_words"), words) == {"Place", "last word"}
    assert fixed_names(TABLE).search(TABLE) is None


def test_a_file_with_a_retired_word_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / GLOSSARY).write_text(TABLE)
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/clean.py").write_text("frame = 1\n")
    (tmp_path / "agent/stale.py").write_text("class Place: ...\n")
    (tmp_path / "agent/last_word.py").write_text("")
    found = faults(search_tree(tmp_path))
    assert [line.partition(" (")[0] for line in found] == [
        "agent/last_word.py: retired: last word",
        "agent/stale.py: retired: Place",
    ]


def test_the_glossary_has_its_words() -> None:
    assert {"shelf", "wishes", "Link"} <= set(retired_words((TOP / GLOSSARY).read_text()))
