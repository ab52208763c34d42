"""Follows the relative links of every Markdown page, and the headings that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def dead_links(top: Path) -> list[str]:
    pages = [*top.glob("*.md"), *(top / "docs").rglob("*.md")]
    return [f"{page}: dead link {link}" for page in sorted(pages) for link in _dead(page)]


def _dead(page: Path) -> Iterator[str]:
    for link in _LINK.findall(_CODE.sub("", page.read_text())):
        target, _, heading = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = page.parent / target if target else page
        if not file.exists() or (heading and file.suffix == ".md" and heading not in anchors(file.read_text())):
            yield link


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
