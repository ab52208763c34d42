"""The catalogue: short names for images that others publish, where they are and what they must hash to.

A TOML file with a table for each name: `url` of a disk with `sha256`, `sha512` or `sums` (the address of a file with
digests, as distributions publish it), or `image`, a reference at a registry; `user` is who to log in as. Or `alias`
alone: another of the names.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from ...protocols.errors import InvalidRequest, RegistryFailed
from ...protocols.reference import LOCAL, Reference, parse_reference

OWN_CATALOGUE = Path(__file__).parents[2] / "configs" / "images.toml"
MAX_SUMS = 1 << 20
_HTTPS = r"^https://[^\s#@]+\Z"
_LINE = re.compile(r"(?P<hex>[0-9a-f]{64}|[0-9a-f]{128}) [ *](?P<file>\S+)")
_BSD_LINE = re.compile(r"SHA(?:256|512) \((?P<file>[^)]+)\) = (?P<hex>[0-9a-f]{64}|[0-9a-f]{128})")
_ALGORITHMS = {64: "sha256", 128: "sha512"}

Address = Annotated[str, Meta(pattern=_HTTPS, max_length=2048)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One name of the catalogue."""

    url: Address | None = None
    sums: Address | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] = ""
    sha512: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")] = ""
    image: str = ""
    alias: str = ""
    user: str = ""
    about: str = ""

    @property
    def digest(self) -> tuple[str, str] | None:
        """The algorithm and the hexadecimal digest, where they stand here."""
        if self.sha256:
            return "sha256", self.sha256
        return ("sha512", self.sha512) if self.sha512 else None


class CatalogueError(Exception):
    """A catalogue file cannot be used; the message names the file and the entry."""


class Catalogue:
    """Entries by reference. Names of a later file replace those of an earlier one."""

    def __init__(self, entries: Mapping[Reference, Entry]) -> None:
        self.entries = dict(entries)

    def find(self, reference: Reference) -> Entry | None:
        """Only names without a registry are looked up: the catalogue never stands in for one."""
        return self.entries.get(reference) if reference.registry == LOCAL and not reference.digest else None

    def target(self, entry: Entry) -> Entry:
        """What an alias stands for; any other entry itself."""
        return self.entries[parse_reference(entry.alias)] if entry.alias else entry


def load_catalogue(*files: Path) -> Catalogue:
    """Read catalogue files, the own ones last. Raises: CatalogueError."""
    entries: dict[Reference, Entry] = {}
    for file in files:
        try:
            tables = tomllib.loads(file.expanduser().read_text())
        except (OSError, ValueError, RuntimeError) as error:
            raise CatalogueError(f"{file}: {error}") from None
        for name, table in tables.items():
            try:
                entries[parse_reference(name)] = _entry(table)
            except (msgspec.ValidationError, InvalidRequest) as error:
                raise CatalogueError(f"{file}: {name}: {error}") from None
        _check_aliases(file, entries)
    return Catalogue(entries)


def _check_aliases(file: Path, entries: Mapping[Reference, Entry]) -> None:
    for name, entry in entries.items():
        if entry.alias:
            target = entries.get(parse_reference(entry.alias))
            if target is None or target.alias:
                raise CatalogueError(f"{file}: {name}: the alias '{entry.alias}' is no name with a url or an image")


def _entry(table: object) -> Entry:
    entry = msgspec.convert(table, Entry)
    if [bool(entry.url), bool(entry.image), bool(entry.alias)].count(True) != 1:
        raise InvalidRequest("an entry has either a url or an image or an alias")
    if entry.alias:
        parse_reference(entry.alias)
    if entry.url and not (entry.sums or entry.digest):
        raise InvalidRequest("an entry with a url has one of sha256, sha512 and sums")
    if entry.image and parse_reference(entry.image).registry == LOCAL:
        raise InvalidRequest("the image of an entry names its registry")
    return entry


def find_sum(sums: bytes, url: str) -> tuple[str, str]:
    """The algorithm and digest that a file of digests gives for the last part of `url`. Raises: RegistryFailed."""
    wanted = PurePosixPath(urlsplit(url).path).name
    for line in sums.decode(errors="replace").splitlines():
        match = _LINE.fullmatch(line.strip()) or _BSD_LINE.fullmatch(line.strip())
        if match and match["file"].removeprefix("./") == wanted:
            return _ALGORITHMS[len(match["hex"])], match["hex"]
    raise RegistryFailed(f"the published digests do not name {wanted}")
