"""`configs/twinshare.toml` shows every key that there is, at its default, with a word about it."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import msgspec
import pytest

from tests.rules.tree import TOP
from twinshare.agent.config import Config, ConfigError, load_config

SHIPPED = TOP / "configs/twinshare.toml"


def keys(section: msgspec.Struct, prefix: str = "") -> dict[str, Any]:
    """Every key below a section with its value, by dotted name."""
    found: dict[str, Any] = {}
    for name in section.__struct_fields__:
        value = getattr(section, name)
        found |= keys(value, f"{prefix}{name}.") if isinstance(value, msgspec.Struct) else {f"{prefix}{name}": value}
    return found


DEFAULTS = keys(Config())


def test_the_file_holds_the_defaults() -> None:
    assert msgspec.convert(tomllib.loads(SHIPPED.read_text()), Config) == Config()


@pytest.mark.parametrize("key", DEFAULTS)
def test_each_key_is_shown_at_its_default_and_explained(key: str) -> None:
    value: Any = tomllib.loads(SHIPPED.read_text())
    for part in key.split("."):
        assert part in value, f"{key} is missing"
        value = value[part]
    assert value == msgspec.to_builtins(DEFAULTS[key])
    *sections, name = key.split(".")
    assert name in commented_keys(".".join(sections)), f"{key} has no comment"


@pytest.mark.parametrize("key", [key for key in DEFAULTS if key != "peers"])
def test_each_key_has_its_environment_variable(key: str) -> None:
    """A value that no key has by default is taken, or refused by the variable's name; it is never overlooked."""
    variable = f"TWINSHARE_{key}".upper().replace(".", "_")
    try:
        seen = keys(load_config(SHIPPED, environment={variable: "~"}))
    except ConfigError as refusal:
        seen = DEFAULTS | {key: str(refusal)}
    assert [name for name in seen if seen[name] != DEFAULTS[name]] == [key]


def commented_keys(section: str) -> set[str]:
    """The keys of a section that stand below a comment; keys that follow each other share one."""
    text = f"\n{SHIPPED.read_text()}"
    body = re.split(r"\n\[", text.partition(f"\n[{section}]\n")[2] if section else text)[0]
    found: set[str] = set()
    explained = False
    for line in body.splitlines():
        explained = line.startswith("#") or (explained and bool(line.strip()))
        if explained and (match := re.match(r"\w+", line)):
            found.add(match[0])
    # A section whose comment stands above its own header, as [peers] does.
    return found | set(re.findall(r"^#.*\n\[(\w+)\]$", text, re.MULTILINE))
