"""References: what is read, what is refused, and that no name is ever a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.protocols.errors import InvalidRequest
from twinshare.protocols.reference import Reference, parse_reference

HEX = "0123456789abcdef" * 4
SHA, BLAKE = f"sha256:{HEX}", f"blake3:{HEX}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiny", Reference(name="tiny", tag="latest")),
        ("tiny:v1.0", Reference(name="tiny", tag="v1.0")),
        ("ubuntu-24.04", Reference(name="ubuntu-24.04", tag="latest")),
        ("cirunlabs/ubuntu", Reference(name="cirunlabs/ubuntu", tag="latest")),
        ("cirunlabs/ubuntu:22", Reference(name="cirunlabs/ubuntu", tag="22")),
        ("ghcr.io/org/name", Reference(registry="ghcr.io", name="org/name", tag="latest")),
        ("GHCR.io/org/name:x", Reference(registry="ghcr.io", name="org/name", tag="x")),
        ("localhost/x", Reference(registry="localhost", name="x", tag="latest")),
        ("localhost:5000/x", Reference(registry="localhost:5000", name="x", tag="latest")),
        ("localhost:5000/x:y", Reference(registry="localhost:5000", name="x", tag="y")),
        ("[::1]:5000/x", Reference(registry="[::1]:5000", name="x", tag="latest")),
        ("10.0.0.1/a/b/c", Reference(registry="10.0.0.1", name="a/b/c", tag="latest")),
        (f"ghcr.io/org/name@{SHA}", Reference(registry="ghcr.io", name="org/name", digest=SHA)),
        (f"name:tag@{BLAKE}", Reference(name="name", tag="tag", digest=BLAKE)),
        (SHA, Reference(digest=SHA)),
        (BLAKE, Reference(digest=BLAKE)),
    ],
)
def test_parses(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "/", "..", "../x", "a/../b", "./a", "/etc/passwd", "a//b", "a/", "/a", "a:", "a:b:c", "a:.x", "a:-x",
        "A", "a b", "a\n", "tiny\n", "tiny:latest\n", "a\0b", "ä", "a@", "a@b", "a@sha256:12", f"a@md5:{HEX}",
        f"a@{SHA}0", f"a@{SHA.upper()}", f"@{SHA}", f"a@{SHA}@{SHA}", "-a", "a-", "a._b", "a.", "a..b", "http://x/y",
        "registry.io/", "registry.io/A", "reg_istry.io/a", "a.b:0/x", "a.b:65536/x", "a.b:/x", ":5000/x", ".a/x",
        "a" * 256, f"a:{'t' * 129}", f"{'a.' * 200}io/x", "ghcr.io/../x", "ghcr.io//x", "%2e%2e/x", "a\\b", "~/x",
    ],
)  # fmt: skip
def test_refuses(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_reference(text)


_words = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,3}", fullmatch=True).filter(lambda word: len(word) < 60)
_references = st.builds(
    Reference,
    registry=st.sampled_from(["local", "ghcr.io", "localhost", "localhost:5000", "quay.io:443", "[fe80::1]:1"]),
    name=st.lists(_words, min_size=1, max_size=3).map("/".join).filter(lambda name: "." not in name.split("/")[0]),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True),
    digest=st.sampled_from(["", SHA, BLAKE]),
).filter(lambda ref: ref.registry != "local" or ref.name.split("/")[0] != "localhost")


@given(_references)
def test_what_is_written_is_read_back(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


@given(st.text() | st.from_regex(r"[a-z0-9./:@_-]{0,40}", fullmatch=True))
def test_any_text_is_read_or_refused_and_never_a_path_out(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidRequest:
        return
    assert parse_reference(str(reference)) == reference
    for part in (*reference.name.split("/"), reference.tag):
        assert part not in {".", ".."}
        assert not set(part) & set("/\\\0\n ")
