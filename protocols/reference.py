"""How an image is named: `[registry/]name[:tag][@digest]`, or a digest alone. A name is never a path of anything.

The first part is a registry when it has a dot or a colon or is `localhost`, as everywhere in the container world.
"""

from __future__ import annotations

import re

import msgspec

from .errors import InvalidRequest

LOCAL = "local"
DEFAULT_TAG = "latest"

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"(?:sha256|blake3):[0-9a-f]{64}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9]+")
MAX_NAME = 255
MAX_REGISTRY = 255


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed name. `registry` is `local` for an image that came from none.

    `digest` is `sha256:…` (an OCI manifest) or `blake3:…` (the content); a digest alone has an empty `name` and `tag`.
    """

    registry: str = LOCAL
    name: str = ""
    tag: str = ""
    digest: str = ""

    @property
    def is_digest(self) -> bool:
        """Whether it says which content and no name."""
        return not self.name

    def __str__(self) -> str:
        place = "" if self.registry == LOCAL else f"{self.registry}/"
        tag = f":{self.tag}" if self.tag else ""
        joint = "@" if self.name and self.digest else ""
        return f"{place}{self.name}{tag}{joint}{self.digest}"


def is_digest(text: str) -> bool:
    """Whether `text` is a digest and nothing else."""
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Read a reference; the tag is `latest` where neither a tag nor a digest is given.

    Raises: InvalidRequest, saying which part is wrong.
    """
    if is_digest(text):
        return Reference(digest=text)
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _wrong(text, "a digest is sha256: or blake3: and 64 hexadecimal digits")
    registry, rest = _split_registry(rest, text)
    name, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _wrong(
            text, "a tag is at most 128 letters, digits, dots, dashes and underscores, and no dot or dash first"
        )
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise _wrong(
            text, "a name is lower-case words of letters and digits, joined by dots, dashes, underscores or slashes"
        )
    return Reference(registry=registry, name=name, tag=tag or ("" if digest else DEFAULT_TAG), digest=digest)


def _split_registry(rest: str, text: str) -> tuple[str, str]:
    first, slash, after = rest.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        return LOCAL, rest
    host = first.lower()
    match = _REGISTRY.fullmatch(host)
    if match is None or len(host) > MAX_REGISTRY or int(match["port"] or 1) not in range(1, 65536):
        raise _wrong(text, f"'{first[:64]}' is not a registry's host name")
    return host, after


def vm_name_after(image: str, mark: str) -> str:
    """A name for a VM of which none is given: the last part of its image's name, and `mark`. Raises: InvalidRequest."""
    word = _NOT_IN_A_LABEL.sub("-", parse_reference(image).name.rpartition("/")[2]).strip("-")[:48].rstrip("-")
    return f"{word or 'vm'}-{mark}"


def _wrong(text: str, why: str) -> InvalidRequest:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return InvalidRequest(f"'{shown}' is not an image's name: {why}", path="image")
