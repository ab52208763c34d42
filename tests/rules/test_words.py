"""The retired words of docs/glossary.md do not come back, and the list of the files that still have some shrinks."""

from __future__ import annotations

from scripts.documents.words import (
    GLOSSARY,
    fixed_names,
    new_faults,
    read_allowed,
    retired_words,
    search_tree,
    stale_lines,
    words_in,
)
from tests.rules.tree import TOP

TABLE = "| term | meaning | retired words |\n|---|---|---|\n| grace | time | last word, `Place` |\n"


def test_no_retired_word_comes_back() -> None:
    assert new_faults(search_tree(TOP), read_allowed(TOP)) == []


def test_the_list_of_files_shrinks() -> None:
    """python -m scripts.documents.words --shrink removes what was cleaned."""
    assert stale_lines(search_tree(TOP), read_allowed(TOP)) == []


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


def test_a_file_that_is_not_on_the_list_is_a_fault() -> None:
    assert new_faults({"a.py": {"room", "twin"}}, {"a.py": {"room"}})[0].startswith("a.py: retired: twin ")
    assert new_faults({"a.py": {"room"}}, {"a.py": {"room", "twin"}}) == []


def test_the_glossary_has_its_words() -> None:
    assert {"shelf", "wishes", "Link"} <= set(retired_words((TOP / GLOSSARY).read_text()))
