"""The page of configuration keys: the shipped file's words, the code's types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from scripts.documents.markdown import code, table
from twinshare.agent.config import Config

SHIPPED = Path("configs/twinshare.toml")
HEAD = """# Configuration

One TOML file: `--config FILE`, else `$TWINSHARE_CONFIG`, else `/etc/twinshare/twinshare.toml`, else
`twinshare/twinshare.toml` in the user's configuration directory. A key's environment variable wins over the file, and a
command-line option over both. An unknown key or a wrong type stops the start with exit code 2, naming file, line, key
and the nearest valid key. [`configs/twinshare.toml`](../../configs/twinshare.toml) holds all of this, ready to copy.

"""


def page() -> str:
    comments = read_comments(SHIPPED.read_text())
    sections: list[str] = []
    for name, section in walk(Config()):
        rows = [
            (
                code(key),
                code(default(value)),
                code(f"TWINSHARE_{name}_{key}".upper().replace(".", "_")),
                comments[name, key],
            )
            for key, value in plain(section)
        ]
        if rows:
            sections.append(f"## `[{name}]`\n\n" + table(("key", "default", "environment", "meaning"), rows))
    return HEAD + "\n".join([*sections, PEERS])


PEERS = """## `[peers."<peer id>"]`

What this node allows one peer, at most: `deny`, `role`, `max_vms`, `max_cpu`, `max_memory` (MiB), `max_disk` (GiB).
It can only lower what the peer's certificate says.
"""


def walk(config: msgspec.Struct, prefix: str = "") -> list[tuple[str, msgspec.Struct]]:
    """Each section below `config` by its dotted name, outer ones first."""
    found: list[tuple[str, msgspec.Struct]] = []
    for field in config.__struct_fields__:
        value = getattr(config, field)
        if isinstance(value, msgspec.Struct):
            found += [(f"{prefix}{field}", value), *walk(value, f"{prefix}{field}.")]
    return found


def plain(section: msgspec.Struct) -> list[tuple[str, Any]]:
    values = [(field, getattr(section, field)) for field in section.__struct_fields__]
    return [(field, value) for field, value in values if not isinstance(value, msgspec.Struct)]


def default(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def read_comments(text: str) -> dict[tuple[str, str], str]:
    """What the file says above each key; keys that follow each other share a comment."""
    found: dict[tuple[str, str], str] = {}
    section, words = "", list[str]()
    for line in text.splitlines():
        if header := re.fullmatch(r"\[([\w.]+)\]", line):
            section, words = header[1], []
        elif line.startswith("# "):
            if words and words[-1] == "":
                words = []
            words.append(line.removeprefix("# "))
        elif key := re.match(r"(\w+) = ", line):
            found[section, key[1]] = " ".join(word for word in words if word)
            words.append("")  # a comment after this key is another's
    return found
