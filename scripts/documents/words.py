"""Finds retired words, the last column of the table in docs/glossary.md: `python -m scripts.documents.words`."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

GLOSSARY = Path("docs/glossary.md")
# Decisions and the change log tell what was, golden files what the wire calls it; the others are not ours to word.
_NOT_CHECKED = (
    "docs/decisions",
    "tests/fuzz_corpus",
    "docs/glossary.md",
    "docs/reference",
    "tests/rules/test_words.py",
    "tests/golden/",
    "api/web/vendor",
    "tests/vendor",
)
_FOLDERS = ("agent", "api", "protocols", "scripts", "tests", "examples", "docs", "configs")
_SUFFIXES = {".py", ".md", ".js", ".html", ".toml", ".sh", ".go", ""}
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def retired_words(glossary: str) -> dict[str, re.Pattern[str]]:
    """Return each retired word of the table with what matches it: an identifier as it is, or a phrase among tokens."""
    cells = [word.strip() for row in _table(glossary, "term") for word in row[2].split(",") if word.strip()]
    return {cell.strip("`"): _pattern(cell) for cell in cells}


def fixed_names(glossary: str) -> re.Pattern[str]:
    """Return what matches the names that the wire, the disk or a specification has: there they are no retired words."""
    names = [row[0].strip().strip("`") for row in _table(glossary, "name")]
    return re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names) or "(?!)")


def _table(glossary: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose first column is headed `first`."""
    _, _, rest = glossary.partition(f"| {first} |")
    rows = itertools.takewhile(lambda line: line.startswith("|"), rest.splitlines()[1:])
    return [row.strip("|").split("|") for row in rows][1:]


def _pattern(cell: str) -> re.Pattern[str]:
    if cell.startswith("`"):
        return re.compile(rf"\b{re.escape(cell.strip('`'))}\b")
    return re.compile(rf" {re.escape(cell.lower())}s? ")


def words_in(text: str, words: Mapping[str, re.Pattern[str]]) -> set[str]:
    """Return the retired words that a text has, in prose or in identifiers of any case."""
    tokens = f" {' '.join(_TOKEN.findall(text)).lower()} "
    return {
        word for word, pattern in words.items() if pattern.search(tokens if pattern.pattern.startswith(" ") else text)
    }


def search_tree(top: Path) -> dict[str, set[str]]:
    """Return the retired words of each file of the checkout that has any; a file's own path counts."""
    glossary = (top / GLOSSARY).read_text()
    words, fixed = retired_words(glossary), fixed_names(glossary)
    found = {path: words_in(fixed.sub("", f"{path}\n{(top / path).read_text()}"), words) for path in _checked(top)}
    return {path: hits for path, hits in found.items() if hits}


def _checked(top: Path) -> Iterator[str]:
    files = [*top.glob("*.md"), *(path for folder in _FOLDERS for path in (top / folder).rglob("*"))]
    for file in sorted(files):
        path = file.relative_to(top).as_posix()
        known = file.suffix in _SUFFIXES and path != "CHANGELOG.md" and not path.startswith(_NOT_CHECKED)
        if known and "__pycache__" not in path and file.is_file() and not file.is_symlink():
            yield path


def faults(found: Mapping[str, set[str]]) -> list[str]:
    """Return a sentence for each file with retired words."""
    return [
        f"{path}: retired: {', '.join(sorted(words))} ({GLOSSARY} says what to write)" for path, words in found.items()
    ]


def main() -> int:
    lines = faults(search_tree(Path()))
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
