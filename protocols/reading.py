"""Reads what callers send as the types that operations take, and says in a sentence what is wrong with it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from .bounded.json import BadMember, check_json, check_single_members
from .errors import InvalidRequest
from .node import PRINCIPAL_NAME_PATTERN
from .size import PATTERN as SIZE_PATTERN
from .tolerant import decode_tolerantly
from .vm import MAC_PATTERN, NAME_PATTERN

Query = TypeVar("Query", bound=msgspec.Struct)

# What a pattern means to people.
_MEANT = {
    MAC_PATTERN: "must be a MAC address in lower case, such as 52:54:00:12:34:56",
    NAME_PATTERN: "must be 1 to 63 of a-z, 0-9 and '-', and neither begin nor end with '-'",
    PRINCIPAL_NAME_PATTERN: "must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'",
    SIZE_PATTERN: "must be a number and a unit, such as 512M or 2G",
}
_OF_A_KEY = "key` in `"
_CHOICE = re.compile(r"\^\(([a-z|]+)\)\$")


def convert_query(query: Mapping[str, Any], kind: type[Query]) -> Query:
    """A query string's parameters as a `kind`. A parameter cannot be null: it is left out instead. One that may come
    several times is a list here.

    Raises: InvalidRequest, with the name of the parameter that is wrong.
    """
    found: Query = convert(dict(query), kind, "query")
    if nothing := [name for name in query if getattr(found, name) is None]:
        raise InvalidRequest(f"{nothing[0]}: must not be null; leave it out instead", path=nothing[0])
    # msgspec takes a number that is text for seconds of the epoch, which no document says.
    times = [name for name in query if isinstance(getattr(found, name), datetime)]
    if numbers := [name for name in times if ":" not in str(query[name])]:
        raise InvalidRequest(f"{numbers[0]}: must be a time such as 2026-01-31T12:00:00Z", path=numbers[0])
    return found


def convert(value: Any, kind: Any, name: str) -> Any:
    """Plain values, also numbers that are text, as a `kind`. Raises: InvalidRequest, its path beginning at `name`."""
    try:
        return msgspec.convert(value, kind, strict=False)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _invalid(error, name) from None


def decode_json(body: bytes, kind: Any) -> Any:
    """Decode one JSON document. Raises: InvalidRequest with the field's path."""
    try:
        check_json(body)
        value = _decoder(kind).decode(body)
        check_single_members(body)
        return value
    except BadMember as error:
        raise _invalid(error, error.member) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(error) from None


def decode_msgpack(data: bytes, kind: Any) -> Any:
    """Decode one msgpack value of a peer of any version. Raises: InvalidRequest with the field's path."""
    try:
        return decode_tolerantly(data, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(error) from None


@functools.lru_cache(maxsize=256)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _invalid(error: Exception, name: str | None = None) -> InvalidRequest:
    """msgspec writes `… - at `$.field``, or ``key` in `$.field``: the path goes into the details, the rest is the
    sentence.
    """
    text = str(error) or type(error).__name__
    sentence, _, where = text.partition(" - at `")
    if where.startswith(_OF_A_KEY):
        sentence, where = f"a key: {sentence}", where.removeprefix(_OF_A_KEY)
    path = where.rstrip("`").removeprefix("$.") or name or "$"
    if (missing := re.search(r"missing required field `(\w+)`|unknown field `([^`]*)`", sentence)) and not where:
        path = missing[1] or missing[2]
    prefix = "" if path == "$" else f"{path}: "
    return InvalidRequest(f"{prefix}{_in_words(sentence)}", path=path)


def _in_words(sentence: str) -> str:
    _, _, pattern = sentence.partition(" matching regex ")
    pattern = pattern.strip("'").replace("\\\\", "\\")
    if choice := _CHOICE.fullmatch(pattern):
        return "must be " + " or ".join(choice[1].split("|"))
    return _MEANT.get(pattern, sentence)
