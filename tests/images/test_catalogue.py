"""The catalogue: ours can be read, a user's adds to it, and what is wrong in one is said with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinshare.agent.images.catalogue import OWN_CATALOGUE, CatalogueError, find_sum, load_catalogue
from twinshare.protocols.errors import RegistryFailed
from twinshare.protocols.reference import parse_reference

SHA256, SHA512 = "0" * 64, "1" * 128


def test_our_own_catalogue() -> None:
    catalogue = load_catalogue(OWN_CATALOGUE)
    for name in ("ubuntu-26.04", "ubuntu-24.04", "ubuntu-22.04", "ubuntu-20.04", "debian-12", "alpine-3.24", "fedora"):
        entry = catalogue.find(parse_reference(name))
        assert entry is not None, name
        assert entry.user
        assert entry.about
    assert catalogue.find(parse_reference("ghcr.io/x/ubuntu-24.04")) is None
    assert catalogue.find(parse_reference("ubuntu-24.04:other")) is None


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("ubuntu:latest", "ubuntu-26.04"),
        ("ubuntu", "ubuntu-26.04"),
        ("alpine-3", "alpine-3.24"),
        ("debian", "debian-13"),
    ],
)
def test_an_alias_is_another_name(alias: str, name: str) -> None:
    catalogue = load_catalogue(OWN_CATALOGUE)
    entry = catalogue.find(parse_reference(alias))
    assert entry is not None
    assert catalogue.target(entry) is catalogue.find(parse_reference(name))


def test_own_entries_come_last_and_win(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        f'["debian-12"]\nimage = "ghcr.io/me/debian:12"\n["x:v1"]\nurl = "https://a/b"\nsha256 = "{SHA256}"\n'
    )
    catalogue = load_catalogue(OWN_CATALOGUE, mine)
    entry = catalogue.find(parse_reference("debian-12"))
    assert entry is not None
    assert entry.image == "ghcr.io/me/debian:12"
    versioned = catalogue.find(parse_reference("x:v1"))
    assert versioned is not None
    assert versioned.digest == ("sha256", SHA256)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x", "Expected|expected"),
        ("[x]\n", "either a url or an image"),
        (f'[x]\nurl = "https://a/b"\nsha256 = "{SHA256}"\nalias = "y"\n', "either a url or an image"),
        ('[x]\nalias = "y"\n', "'y' is no name"),
        ('[x]\nalias = "x"\n', "'x' is no name"),
        ('[x]\nalias = "../y"\n', "name"),
        ('[x]\nurl = "https://a/b"\n', "one of sha256"),
        (f'[x]\nurl = "http://a/b"\nsha256 = "{SHA256}"\n', "url"),
        (f'[x]\nurl = "https://me:pw@a/b"\nsha256 = "{SHA256}"\n', "url"),
        ('[x]\nurl = "https://a/b"\nsha256 = "12"\n', "sha256"),
        ('[x]\nimage = "local-name"\n', "registry"),
        ('[x]\nimage = "ghcr.io/a/b"\ncolour = "red"\n', "colour"),
        ('["../x"]\nimage = "ghcr.io/a/b"\n', "name"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(CatalogueError, match=why) as caught:
        load_catalogue(file)
    assert str(file) in str(caught.value)
    with pytest.raises(CatalogueError):
        load_catalogue(tmp_path / "absent.toml")


def test_published_digests() -> None:
    sums = f"{SHA256} *a.img\n{SHA512}  ./b.qcow2\nSHA256 (c.raw.xz) = {SHA256}\nrubbish\n{SHA256[1:]}  d\n".encode()
    assert find_sum(sums, "https://x/y/a.img") == ("sha256", SHA256)
    assert find_sum(sums, "https://x/y/b.qcow2?mirror=1") == ("sha512", SHA512)
    assert find_sum(sums, "https://x/c.raw.xz") == ("sha256", SHA256)
    for missing in ("https://x/d", "https://x/", "https://x/img", "https://x/a.im"):
        with pytest.raises(RegistryFailed, match="do not name"):
            find_sum(sums, missing)
    with pytest.raises(RegistryFailed):
        find_sum(b"\xff\xfe", "https://x/a.img")
