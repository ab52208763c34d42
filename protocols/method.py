"""One operation: its names and types, and how REST and the peer protocol carry its arguments and its result."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_origin, get_type_hints
from urllib.parse import quote

import msgspec

from .access import Role
from .bounded.msgpack import MAX_RESULT_ELEMENTS
from .errors import InvalidRequest, PeerMisbehaved, TooLarge
from .reading import convert, convert_query, decode_json, decode_msgpack
from .routes import READS, rest
from .secrets import without_secrets
from .tolerant import decode_tolerantly

_PLACEHOLDER = re.compile(r"<(\w+)>")
_EMPTY_BODY = re.compile(rb"[ \t\r\n]*(null|\{[ \t\r\n]*\})[ \t\r\n]*")


class Method(msgspec.Struct, frozen=True):
    """One operation. `args` holds every parameter, `body` and `query` the ones that REST carries there."""

    service: type
    name: str
    # The name of the function in the service class; `name` is the one on the wire.
    attribute: str
    verb: str
    path: str
    role: Role
    local: bool
    summary: str
    result: Any
    answer: Any
    remote_answer: Any
    example: Any
    journalled: bool
    by_asked_node: bool
    newest: int
    cached_rows: bool
    max_arguments: int
    args: type[msgspec.Struct]
    # The same, and the ID of the peer whose VM it is about.
    peer_args: type[msgspec.Struct]
    path_params: Mapping[str, Any]
    query: type[msgspec.Struct] | None
    body: type[msgspec.Struct] | None
    # The one Struct parameter that is the whole body, if there is one.
    body_param: str | None
    body_required: bool

    @property
    def mutates(self) -> bool:
        """Whether this changes anything (a read and a method between peers alone do not)."""
        return self.verb not in READS

    @property
    def lists(self) -> bool:
        """Whether the result is a list, which goes between peers in pages."""
        return get_origin(self.result) is list

    def arguments(self, path: Mapping[str, str], query: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """The call's arguments from what a REST request carries.

        Raises: InvalidRequest, with the path of the field that is wrong.
        """
        found: dict[str, Any] = {name: convert(path[name], kind, name) for name, kind in self.path_params.items()}
        if self.query is not None:
            found |= _fields(convert_query(query, self.query))
        elif query:
            raise InvalidRequest(f"unknown query parameter '{min(query)}'", path=min(query))
        if self.body is None:
            if body.strip() if self.verb == "GET" else _is_given(body):
                raise InvalidRequest(f"{self.verb} {self.path} takes no body")
        elif _is_given(body) or self.body_required:
            value = decode_json(body, self.body)
            found |= {self.body_param: value} if self.body_param else _fields(value)
        return found

    def request(self, arguments: Mapping[str, Any]) -> tuple[str, dict[str, str], bytes]:
        """The other end of `arguments`: the path, the query and the body of a REST request that carries them.

        A field at its default is left out: the answering node knows it, and an older one may not know the field.
        Raises: InvalidRequest when a part of the path is empty.
        """
        path = _PLACEHOLDER.sub(lambda found: path_part(arguments[found[1]], found[1]), self.path)
        carried = {name: value for name, value in arguments.items() if name not in self.path_params}
        if self.query is not None:
            return path, {name: _text(value) for name, value in _given(self.query(**carried)).items()}, b""
        if self.body is None:
            return path, {}, b""
        given = _given(carried[self.body_param] if self.body_param else self.body(**carried))
        return path, {}, msgspec.json.encode(given) if given or self.body_required else b""

    def about(self, arguments: Mapping[str, Any]) -> str:
        """What the call is about, in a word: the first placeholder of its path, else what its body names, or ""."""
        given = {**arguments, **(_fields(arguments[self.body_param]) if self.body_param else {})}
        named = (*self.path_params, "vm", "name", "image", "peer_id")
        return next((str(given[name]) for name in named if given.get(name)), "")

    def pack(self, arguments: Mapping[str, Any]) -> bytes:
        """The arguments as one msgpack map, for a peer."""
        return msgspec.msgpack.encode(self.args(**arguments))

    def pack_without_secrets(self, arguments: Mapping[str, Any]) -> bytes:
        """The arguments as they may be kept for ever (protocols/secrets.py)."""
        return msgspec.msgpack.encode(without_secrets(self.args(**arguments), ended=True))

    def unpack(self, data: bytes) -> dict[str, Any]:
        """The other end of `pack`. Raises: InvalidRequest, TooLarge before anything is decoded."""
        if len(data) > self.max_arguments:
            raise self.too_large(len(data))
        return _fields(decode_msgpack(data, self.args))

    def too_large(self, size: int) -> TooLarge:
        """Return the error for packed arguments of so many bytes."""
        sentence = f"{self.name} takes {self.max_arguments} bytes of arguments, not {size}"
        return TooLarge(sentence, limit=self.max_arguments)

    def unpack_result(self, data: bytes) -> Any:
        """What a peer answered. Raises: PeerMisbehaved."""
        try:
            return decode_tolerantly(data, self.result, elements=MAX_RESULT_ELEMENTS)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise PeerMisbehaved(f"the peer's answer to {self.name} is not understood: {error}") from None


def path_part(value: object, name: str) -> str:
    """A value as one part of a path. Raises: InvalidRequest when it is empty, which would make another path of it."""
    if value == "":
        raise InvalidRequest(f"{name}: must not be empty", path=name)
    return quote(str(value), safe="")


def _is_given(body: bytes) -> bool:
    """Whether a body says anything: many clients send `{}` or `null` where there is nothing to say."""
    return bool(body.strip()) and _EMPTY_BODY.fullmatch(body) is None


def _fields(value: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


@functools.cache
def _known_fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a type, whose annotations take a millisecond to evaluate."""
    return msgspec.structs.fields(kind)


def _given(value: msgspec.Struct) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    given = _fields(value)
    for field in _known_fields(type(value)):
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if not field.required and given[field.name] == default:
            del given[field.name]
    return given


def _text(value: Any) -> str:
    """A query parameter's value as `_convert` reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@functools.cache
def read_method(service: type, function: Any) -> Method:
    """Return the operation that a function with a route defines."""
    mark: rest = function.rest
    hints = get_type_hints(function, include_extras=True)
    signature = list(inspect.signature(function).parameters.values())[1:]
    name = function.__name__
    fields = {
        p.name: (p.name, hints[p.name]) if p.default is p.empty else (p.name, hints[p.name], p.default)
        for p in signature
    }
    on_wire = {signature[0].name: mark.wire_argument} if mark.wire_argument else None
    in_path = _PLACEHOLDER.findall(mark.path)
    rest_of = [p for p in signature if p.name not in in_path]
    whole = (
        len(rest_of) == 1
        and isinstance(hints[rest_of[0].name], type)
        and issubclass(hints[rest_of[0].name], msgspec.Struct)
    )
    carried = _struct(f"{name}_request", [fields[p.name] for p in rest_of]) if rest_of and not whole else None
    body = hints[rest_of[0].name] if whole else carried
    in_query = mark.verb == "GET" or mark.in_query
    return Method(
        service=service,
        name=mark.wire_name or name,
        attribute=name,
        verb=mark.verb,
        path=mark.path,
        role=mark.role,
        local=mark.local,
        summary=summary(function),
        result=hints["return"],
        answer=mark.answer or hints["return"],
        remote_answer=mark.remote_answer or mark.answer or hints["return"],
        example=mark.example,
        journalled=mark.journalled and mark.verb not in READS,
        by_asked_node=mark.by_asked_node,
        newest=mark.newest,
        cached_rows=mark.cached_rows,
        max_arguments=mark.max_arguments,
        args=_struct(f"{name}_args", fields.values(), forbid_unknown=False, rename=on_wire),
        peer_args=_struct(f"{name}_at_peer", [*fields.values(), ("peer", str)], forbid_unknown=False),
        path_params={param: hints[param] for param in in_path},
        query=carried if in_query else None,
        body=None if in_query else body,
        body_param=rest_of[0].name if whole else None,
        body_required=not in_query and any(p.default is p.empty for p in rest_of),
    )


def _struct(
    name: str, fields: Iterable[Any], *, forbid_unknown: bool = True, rename: Mapping[str, str] | None = None
) -> type[msgspec.Struct]:
    """Make a Struct of these fields. One at its default is not sent: an older version may not know it."""
    return msgspec.defstruct(
        "".join(part.title() for part in name.split("_")),
        fields,
        kw_only=True,
        frozen=True,
        omit_defaults=True,
        forbid_unknown_fields=forbid_unknown,
        rename=rename,
    )


def summary(documented: Any) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]
