"""Reads the service classes: the method table, `stub` for callers, `Dispatcher` for owners."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from .access import Caller
from .method import Method, read_method


@functools.cache
def methods(service: type) -> Mapping[str, Method]:
    """Return the operations of one service class by the names of its functions, in their order."""
    return {name: read_method(service, f) for name, f in vars(service).items() if hasattr(f, "rest")}


def find_method(services: Iterable[type], name: str) -> Method | None:
    """Return one operation by its name and build that one alone: the whole table takes a command 10 ms."""
    for service in services:
        function = vars(service).get(name)
        if hasattr(function, "rest"):
            return read_method(service, function)
    return None


def all_methods(services: Iterable[type]) -> dict[str, Method]:
    """Return the operations of several services by the names on the wire, of which each stands once in all services."""
    table: dict[str, Method] = {}
    for service in services:
        for method in methods(service).values():
            if method.name in table:
                raise TypeError(f"{method.name} is defined twice")
            table[method.name] = method
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

    return _stub_class(service)(call)


@functools.cache
def _stub_class(service: type) -> type:
    """The class behind `stub`, made once: a node makes a stub for each session with a peer."""

    def init(self: Any, call: Call) -> None:
        self._call = call

    def bind(method: Method) -> Any:
        signature = inspect.signature(getattr(service, method.attribute))

        async def invoke(self: Any, *args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(self, *args, **kwargs).arguments
            return await self._call(method, {name: value for name, value in bound.items() if name != "self"})

        invoke.__name__ = method.attribute
        return invoke

    bound = {name: bind(method) for name, method in methods(service).items()}
    return type(f"{service.__name__}Stub", (), {"__init__": init, **bound})


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
        return await getattr(service, method.attribute)(**arguments)
