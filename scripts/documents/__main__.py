"""`scripts/docs`: writes the reference pages, or with `--check` compares them and follows the links of every page."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.documents import commands, configuration, errors, events, links, rest

REFERENCE = Path("docs/reference")
PAGES = {
    "cli.md": commands.page,
    "configuration.md": configuration.page,
    "errors.md": errors.page,
    "events.md": events.page,
    "rest.md": rest.page,
}
NOTE = "<!-- Made by scripts/docs from the code: change it there. -->\n\n"


def main(arguments: list[str]) -> int:
    pages = {REFERENCE / name: NOTE + page() for name, page in PAGES.items()}
    if arguments != ["--check"]:
        REFERENCE.mkdir(parents=True, exist_ok=True)
        for path, text in pages.items():
            path.write_text(text)
    faults = [f"{path}: stale, run scripts/docs" for path, text in pages.items() if not same(path, text)]
    faults += links.dead_links(Path())
    print(*faults, sep="\n", end="\n" if faults else "")
    return 1 if faults else 0


def same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
