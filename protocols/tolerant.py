"""Reads what another version of twinshare wrote: fields and enum values that this version does not know are no error.

What callers of the REST API send is read strictly (protocols/reading.py); this is for peers and for stored rows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import msgspec
from msgspec import inspect

from .access import Role
from .bounded.json import check_json
from .bounded.msgpack import MAX_ELEMENTS, check_msgpack

_STAND_INS: Final[Mapping[type[Enum], Enum]] = {Role: Role.VIEWER}
"""What an unknown value of an enum without a member `UNKNOWN` becomes: a role that this version lacks allows least."""


_PLAIN: Final = (
    inspect.AnyType,
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.BytesType,
)
"""What no version reads otherwise: a list of these is not looked through."""


def decode_tolerantly(data: bytes, kind: Any, *, elements: int = MAX_ELEMENTS) -> Any:
    """Decode msgpack as a `kind`, without the fields that it does not have; it may hold `elements` values.

    An unknown value of an enum that has a member `UNKNOWN` becomes that member, an unknown role `viewer`.
    Raises: msgspec.MsgspecError, ValueError, RecursionError.
    """
    check_msgpack(data, elements=elements)
    try:
        return msgpack_decoder(kind).decode(data)
    except msgspec.ValidationError:
        # The slow way, which only the words of another version take.
        return msgspec.convert(known_part(msgspec.msgpack.decode(data), kind), kind)


def decode_json_tolerantly(data: bytes, kind: Any) -> Any:
    """The same for JSON. Raises: msgspec.MsgspecError, ValueError, RecursionError."""
    check_json(data)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        return msgspec.convert(known_part(msgspec.json.decode(data), kind), kind, builtin_types=())


def known_part(value: Any, kind: Any) -> Any:
    """The part of a plain value (dicts, lists, numbers, text) that a `kind` has a place for."""
    return _fit(value, _type_info(kind))


@functools.lru_cache(maxsize=256)
def msgpack_decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


@functools.lru_cache(maxsize=256)
def _type_info(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _fit(value: Any, kind: inspect.Type) -> Any:
    match kind:
        case inspect.StructType(array_like=True) if isinstance(value, list):
            # Whatever a later version has appended is left out by the decoder.
            return [_fit(part, field.type) for part, field in zip(value, kind.fields, strict=False)]
        case inspect.StructType() if isinstance(value, dict):
            places = {field.encode_name: field.type for field in kind.fields}
            return {name: _fit(part, places[name]) for name, part in value.items() if name in places}
        case inspect.ListType() | inspect.VarTupleType() if isinstance(value, list):
            if isinstance(kind.item_type, _PLAIN):
                return value
            return [_fit(part, kind.item_type) for part in value]
        case inspect.DictType() if isinstance(value, dict):
            if isinstance(kind.value_type, _PLAIN):
                return value
            return {name: _fit(part, kind.value_type) for name, part in value.items()}
        case inspect.EnumType():
            return _known_member(value, kind.cls)
        case inspect.Metadata():
            return _fit(value, kind.type)
        case inspect.UnionType():
            return _fit_one_of(value, kind)
        case inspect.RawType():
            return msgspec.Raw(msgspec.msgpack.encode(value))
        case _:
            return value


def _fit_one_of(value: Any, kind: inspect.UnionType) -> Any:
    if value is None:
        return None
    fitted = (_fit(value, option) for option in kind.types)
    return next((part for part in fitted if part is not value), value)


def _known_member(value: Any, kind: type[Enum]) -> Any:
    stand_in = kind.__members__.get("UNKNOWN") or _STAND_INS.get(kind)
    if stand_in is None or not isinstance(value, str) or any(value == member.value for member in kind):
        return value
    return stand_in.value
