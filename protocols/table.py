"""Reads the service classes: the method table, `stub` for callers, `Dispatcher` for owners.

A `Method` knows how REST and the peer protocol carry its arguments, so that neither describes an operation again.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, get_type_hints
from urllib.parse import quote

import msgspec

from .access import Caller, Role
from .bounded.msgpack import MAX_RESULT_ELEMENTS
from .errors import InvalidRequest, PeerMisbehaved, TooLarge
from .reading import convert, convert_query, decode_json, decode_msgpack
from .tolerant import decode_tolerantly

_PLACEHOLDER = re.compile(r"<(\w+)>")
_EMPTY_BODY = re.compile(rb"[ \t\r\n]*(null|\{[ \t\r\n]*\})[ \t\r\n]*")
Function = TypeVar("Function", bound=Callable[..., Any])
READS = frozenset({"GET", "PEER"})
MAX_ARGUMENTS = 256 << 10
"""Bytes of one call's packed arguments, where the method does not say otherwise."""


class Mark(msgspec.Struct, frozen=True):
    """What `rest` writes on a service's method."""

    verb: str
    path: str
    role: Role
    local: bool
    journalled: bool
    by_asked_node: bool
    in_query: bool
    answer: Any
    remote_answer: Any
    example: Any
    max_arguments: int


def rest(
    verb: str,
    path: str,
    role: Role,
    *,
    local: bool = False,
    journalled: bool = True,
    by_asked_node: bool = False,
    in_query: bool = False,
    answer: Any = None,
    remote_answer: Any = None,
    example: Any = None,
    max_arguments: int = MAX_ARGUMENTS,
) -> Callable[[Function], Function]:
    """Give a method its REST route below a dialect's root, and the role that it needs.

    `local` keeps it from peers: it exists under `/api` alone, never under `/api/remote/<peer>` or on the peer protocol.
    `journalled=False` is for a mutation that the journal does not keep. `by_asked_node` marks a method that, on a
    peer's VM, is carried out by the node that is asked. `in_query`: the parameters are in the query, as those of a GET.
    `answer` is the type of the REST body where it is not the result, `remote_answer` the one under
    `/api/remote/<peer>` (protocols/bodies.py). `example` is a request body.
    `max_arguments` are the bytes of packed arguments that a peer may send.
    """

    def mark(function: Function) -> Function:
        function.__dict__["rest"] = Mark(
            verb, path, role, local, journalled, by_asked_node, in_query, answer, remote_answer, example, max_arguments
        )
        return function

    return mark


def peers_only(role: Role, *, max_arguments: int = MAX_ARGUMENTS) -> Callable[[Function], Function]:
    """An operation of the peer protocol alone: no route leads to it, no journal keeps it."""
    return rest("PEER", "", role, max_arguments=max_arguments)


class Method(msgspec.Struct, frozen=True):
    """One operation. `args` holds every parameter, `body` and `query` the ones that REST carries there."""

    service: type
    name: str
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
        """
        path = _PLACEHOLDER.sub(lambda found: quote(str(arguments[found[1]]), safe=""), self.path)
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

    def unpack(self, data: bytes) -> dict[str, Any]:
        """The other end of `pack`. Raises: InvalidRequest, TooLarge before anything is decoded."""
        if len(data) > self.max_arguments:
            raise TooLarge(
                f"{self.name} takes {self.max_arguments} bytes of arguments, not {len(data)}", limit=self.max_arguments
            )
        return _fields(decode_msgpack(data, self.args))

    def unpack_result(self, data: bytes) -> Any:
        """What a peer answered. Raises: PeerMisbehaved."""
        try:
            return decode_tolerantly(data, self.result, elements=MAX_RESULT_ELEMENTS)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise PeerMisbehaved(f"the peer's answer to {self.name} is not understood: {error}") from None


def _is_given(body: bytes) -> bool:
    """Whether a body says anything: many clients send `{}` or `null` where there is nothing to say."""
    return bool(body.strip()) and _EMPTY_BODY.fullmatch(body) is None


def _fields(value: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


def _given(value: msgspec.Struct) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    given = _fields(value)
    for field in msgspec.structs.fields(value):
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if not field.required and given[field.name] == default:
            del given[field.name]
    return given


def _text(value: Any) -> str:
    """A query parameter's value as `_convert` reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@functools.cache
def _method(service: type, function: Any) -> Method:
    mark: Mark = function.rest
    hints = get_type_hints(function, include_extras=True)
    signature = list(inspect.signature(function).parameters.values())[1:]
    in_path = _PLACEHOLDER.findall(mark.path)
    rest_of = [p for p in signature if p.name not in in_path]
    whole = (
        len(rest_of) == 1
        and isinstance(hints[rest_of[0].name], type)
        and issubclass(hints[rest_of[0].name], msgspec.Struct)
    )
    carried = _struct(f"{function.__name__}_request", rest_of, hints) if rest_of and not whole else None
    body = hints[rest_of[0].name] if whole else carried
    in_query = mark.verb == "GET" or mark.in_query
    return Method(
        service=service,
        name=function.__name__,
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
        max_arguments=mark.max_arguments,
        args=_struct(f"{function.__name__}_args", signature, hints, forbid_unknown=False),
        peer_args=_struct(f"{function.__name__}_at_peer", signature, hints, forbid_unknown=False, more=[("peer", str)]),
        path_params={name: hints[name] for name in in_path},
        query=carried if in_query else None,
        body=None if in_query else body,
        body_param=rest_of[0].name if whole else None,
        body_required=not in_query and any(p.default is p.empty for p in rest_of),
    )


def _struct(
    name: str,
    params: Iterable[inspect.Parameter],
    hints: Mapping[str, Any],
    *,
    forbid_unknown: bool = True,
    more: Iterable[tuple[str, Any]] = (),
) -> type[msgspec.Struct]:
    """A field for each parameter. One at its default is not sent: an older version may not know it."""
    fields: list[Any] = [
        (p.name, hints[p.name]) if p.default is p.empty else (p.name, hints[p.name], p.default) for p in params
    ]
    camel = "".join(part.title() for part in name.split("_"))
    return msgspec.defstruct(
        camel, [*fields, *more], kw_only=True, frozen=True, omit_defaults=True, forbid_unknown_fields=forbid_unknown
    )


def summary(documented: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]


@functools.cache
def methods(service: type) -> Mapping[str, Method]:
    """The operations of one service class, by name, in the order they are written."""
    return {name: _method(service, f) for name, f in vars(service).items() if hasattr(f, "rest")}


def find_method(services: Iterable[type], name: str) -> Method | None:
    """Return one operation by its name and build that one alone: the whole table takes a command 10 ms."""
    for service in services:
        function = vars(service).get(name)
        if hasattr(function, "rest"):
            return _method(service, function)
    return None


def all_methods(services: Iterable[type]) -> dict[str, Method]:
    """The operations of several services, by name; a name stands once in all of them."""
    table: dict[str, Method] = {}
    for service in services:
        for name, method in methods(service).items():
            if name in table:
                raise TypeError(f"{name} is defined twice")
            table[name] = method
    return table


def method_of(function: Callable[..., Any]) -> Method:
    """The method of the table that a service's function is, such as `VmService.pause_vm`. Raises: TypeError."""
    service = vars(sys.modules[function.__module__]).get(function.__qualname__.rpartition(".")[0])
    found = methods(service).get(function.__name__) if isinstance(service, type) else None
    if found is None:
        raise TypeError(f"{function.__qualname__} is no method of a service with a route")
    return found


Call = Callable[[Method, Mapping[str, Any]], Awaitable[Any]]


def stub(service: type, call: Call) -> Any:
    """An object with `service`'s methods that sends each of them through `call`.

    `call` gets the method and its arguments and returns the decoded result.
    """

    def bind(method: Method) -> Any:
        signature = inspect.signature(getattr(service, method.name))

        async def invoke(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(None, *args, **kwargs).arguments
            return await call(method, {name: value for name, value in bound.items() if name != "self"})

        invoke.__name__ = method.name
        return staticmethod(invoke)

    return type(f"{service.__name__}Stub", (), {name: bind(m) for name, m in methods(service).items()})()


class Journal(Protocol):
    """Carries out the mutations that are written down before they act."""

    async def run(self, caller: Caller, method: Method, arguments: Mapping[str, Any]) -> Any: ...


class Dispatcher:
    """The owner's end of a call: checks the role, then runs the method in the journal or on the service that has it.

    `factories` gives for each service class the function that binds an implementation to a caller; without a `journal`
    the implementations have the mutations too.
    """

    def __init__(self, factories: Mapping[type, Callable[[Caller], Any]], journal: Journal | None = None) -> None:
        self._factories, self._journal = factories, journal
        self.table = all_methods(factories)

    def extended(self, factories: Mapping[type, Callable[[Caller], Any]]) -> Dispatcher:
        """This one's services and some more."""
        return Dispatcher({**self._factories, **factories}, self._journal)

    async def call(self, caller: Caller, method: Method, arguments: Mapping[str, Any]) -> Any:
        """Raises: Forbidden, and whatever the method raises."""
        caller.require(method.role, method.name)
        if self._journal is not None and method.journalled:
            return await self._journal.run(caller, method, arguments)
        service = self._factories[method.service](caller)
        return await getattr(service, method.name)(**arguments)
