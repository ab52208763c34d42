"""JSON schemas of msgspec types, written so that generators of clients understand them.

msgspec's own schemas are valid, but generators need more: to oapi-codegen an enum without `type` is anything, in Go an
integer without `format` has 32 bits, a time without `format` is text, and the values of two enums with one name clash.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any

import msgspec
from msgspec import inspect as types

from .errors import ErrorBody

Schema = dict[str, Any]

ERROR = "Error"
"""What the component of `ErrorBody` is called."""

_REFERENCE = "#/components/schemas/{name}"
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")
_FORMATS = {"integer": "int64", "number": "double"}


class Schemas:
    """All types of a document, turned into schemas in one go so that equal types are one component.

    `parameters` are Structs whose fields are parameters: they are in no component, but in `fields`.
    """

    def __init__(self, kinds: Iterable[Any], parameters: Iterable[type[msgspec.Struct]]) -> None:
        every, structs = list(kinds), {one.__name__: one for one in parameters}
        schemas, components = msgspec.json.schema_components([*every, *structs.values()], ref_template=_REFERENCE)
        self._by_kind = dict(zip(map(_key, every), schemas, strict=False))
        for struct in _structs(types.multi_type_info([*every, *structs.values()])):
            _mark_times(components[struct.cls.__name__], struct)
        components[ERROR] = {**components.pop(ErrorBody.__name__), "title": ERROR}
        tidy = {name: _tidy(components[name], name) for name in sorted(components)}
        self.fields = {name: tidy.pop(name) for name in structs}
        self.components: Schema = tidy

    def of(self, kind: Any) -> Schema:
        """The schema of a type; one that is a schema already stays as it is."""
        return kind if isinstance(kind, dict) else _tidy(self._by_kind[_key(kind)])


def _key(kind: Any) -> Any:
    """Annotated types with a dict inside are not hashable: their text tells them apart as well."""
    return kind if isinstance(kind, type) else repr(kind)


def _structs(infos: Iterable[types.Type]) -> Iterator[types.StructType]:
    """Every Struct that is met in the types, once."""
    waiting, seen = list(infos), set()
    while waiting:
        info = waiting.pop()
        if isinstance(info, types.StructType) and info.cls not in seen:
            seen.add(info.cls)
            yield info
            waiting += [field.type for field in info.fields]
        waiting += [part for part in _parts(info) if not isinstance(info, types.StructType)]


def _parts(info: types.Type) -> list[types.Type]:
    match info:
        case types.UnionType():
            return list(info.types)
        case types.ListType() | types.VarTupleType() | types.SetType():
            return [info.item_type]
        case types.TupleType():
            return list(info.item_types)
        case types.DictType():
            return [info.key_type, info.value_type]
        case types.Metadata():
            return [info.type]
    return []


def _mark_times(component: Schema, struct: types.StructType) -> None:
    """msgspec writes a time of any zone as a string of any form."""
    for field in struct.fields:
        if any(isinstance(part, types.DateTimeType) for part in (field.type, *_parts(field.type))):
            schema = component["properties"][field.encode_name]
            for one in schema.get("anyOf", [schema]):
                if one.get("type") == "string":
                    one["format"] = "date-time"


def _tidy(schema: Any, name: str = "") -> Any:
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {key: value if key in {"default", "enum"} else _tidy(value) for key, value in schema.items()}
    if isinstance(tidy.get("description"), str):
        # msgspec copies docstrings as they are indented.
        tidy["description"] = inspect.cleandoc(tidy["description"])
    if tidy.get("$ref") == _REFERENCE.format(name=ErrorBody.__name__):
        tidy["$ref"] = _REFERENCE.format(name=ERROR)
    if isinstance(tidy.get("type"), str) and tidy["type"] in _FORMATS:
        tidy.setdefault("format", _FORMATS[tidy["type"]])
    if "enum" in tidy and all(isinstance(value, str) for value in tidy["enum"]):
        tidy |= {"type": "string", **({"x-enum-varnames": _constants(name, tidy["enum"])} if name else {})}
    return tidy


def _constants(name: str, values: Iterable[str | Enum]) -> list[str]:
    """Names for the values of an enum that no other enum has: in Go all of them are in one name space."""
    return ["_".join(_WORD_START.sub("_", word).upper() for word in (name, str(value))) for value in values]
