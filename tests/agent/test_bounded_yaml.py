"""YAML from outside: whatever the bytes, an answer in milliseconds, and the values that the library gives."""

import contextlib
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from twinshare.agent.bounded_yaml import MAX_DEPTH, MAX_NODES, MAX_NUMBER, YamlError, load_yaml

HOSTILE = {
    "flow sequences": "a: " + "[" * 60_000,
    "flow mappings": "a: " + "{" * 60_000,
    "block sequences": "- " * 30_000,
    "closed sequences": "[" * 10_000 + "]" * 10_000,
    "complex keys": "? " * 30_000,
    "aliases of aliases": "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
    "one anchor often": "a: &a [" + "x, " * 900 + "]\nb: [" + "*a, " * 200 + "]",
    "itself": "a: &a [*a]",
    "merge keys": "a: &a {k: v}\nb: {<<: [" + "*a, " * 9_000 + "]}",
    "sexagesimal": "a: " + ":".join(["1"] * 30_000),
    "a long integer": "a: " + "9" * 60_000,
    "a long octal": "a: 0" + "7" * 60_000,
    "a long binary": "a: 0b" + "1" * 60_000,
    "a bad date": "a: 2026-99-99",
    "an object": "a: !!python/object/apply:os.system [id]",
    "control characters": "a: \x00",
    "surrogates": "a: \ud800",
    "two documents": "a: 1\n---\nb: 2\n",
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_documents_are_refused_at_once(text: str) -> None:
    began = time.process_time()
    with pytest.raises(YamlError):
        load_yaml(text)
    # Without the bounds it took ten seconds or the process.
    assert time.process_time() - began < 2


def test_each_bound_is_where_it_is_said_to_be() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert load_yaml(deepest) == yaml.safe_load(deepest)
    with pytest.raises(YamlError, match="nested deeper"):
        load_yaml(f"[{deepest}]")
    most = "[" + "x," * (MAX_NODES - 1) + "]"
    assert len(load_yaml(most)) == MAX_NODES - 1
    with pytest.raises(YamlError, match="nodes"):
        load_yaml(f"[{most}]")
    assert load_yaml("1" * MAX_NUMBER) == int("1" * MAX_NUMBER)
    with pytest.raises(YamlError, match="digits"):
        load_yaml("1" * (MAX_NUMBER + 1))
    assert load_yaml("'" + "1" * (MAX_NUMBER + 1) + "'") == "1" * (MAX_NUMBER + 1)


def test_an_alias_counts_as_what_it_stands_for() -> None:
    base = "a: &a [" + "x," * 99 + "]\nb: ["
    assert len(load_yaml(base + "*a, " * 90 + "]")["b"]) == 90
    with pytest.raises(YamlError, match="aliases expanded"):
        load_yaml(base + "*a, " * 110 + "]")


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=40,
))  # fmt: skip
def test_what_is_within_the_bounds_is_what_the_library_reads(document: object) -> None:
    text = yaml.safe_dump(document, allow_unicode=True)
    assert load_yaml(text) == yaml.safe_load(text)


@given(st.text(alphabet="[]{}&*!|>%@`:,-? \n\t'\"#a1~<=", max_size=200))
def test_any_text_gives_values_or_a_sentence(text: str) -> None:
    with contextlib.suppress(YamlError):
        load_yaml(text)
