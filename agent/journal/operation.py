"""The base class of every operation that the journal keeps, and the registry of its subclasses.

A subclass names the method of the table that it carries out and holds all of its behaviour:

    class PauseVm(ExistingVmOperation):
        method = VmService.pause_vm
        allowed_in = ACTIVE

Its kind, request type, result type, route and role come from the table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from ...protocols.access import Caller
from ...protocols.method import Method
from ...protocols.table import all_methods, method_of
from .active import ActiveOperation

Services = TypeVar("Services")
Release = Callable[[], None]
"""Gives back what an operation has claimed."""


def nothing_claimed() -> None:
    """The release of an operation that claims nothing."""


class JournalledOperation(ABC, Generic[Services]):
    """One kind of mutation. An instance holds no state but `services`, what it works with; it serves all calls.

    `through_peer` marks the class that carries out, on the node that is asked, a method on a peer's VM (a method that
    the table marks `by_asked_node` has one class for this node's VMs and one for its peers').
    `runs_on_full_disk`: it ends something or makes room, so it goes on although the journal cannot be written; else a
    VM on a full disk could never be deleted.
    """

    method: ClassVar[Callable[..., Any]]
    kind: ClassVar[str] = ""
    through_peer: ClassVar[bool] = False
    runs_on_full_disk: ClassVar[bool] = False
    call: ClassVar[Method]

    def __init_subclass__(cls, **options: Any) -> None:
        """Register a class that names a method; one without is a base of several operations.

        Raises: TypeError when the method is not in the table, is not journalled, or has a class already.
        """
        super().__init_subclass__(**options)
        if "method" not in vars(cls):
            return
        cls.call = method_of(vars(cls)["method"])
        if not cls.call.journalled:
            raise TypeError(f"{cls.__name__}: {cls.call.name} is marked as not journalled")
        if cls.through_peer and not cls.call.by_asked_node:
            raise TypeError(f"{cls.__name__}: {cls.call.name} on a peer's VM is done by the peer")
        cls.kind = vars(cls).get("kind") or cls.call.name
        for other in _classes:
            if other.kind == cls.kind or (other.call == cls.call and other.through_peer == cls.through_peer):
                raise TypeError(f"{cls.__name__}: {cls.call.name} is carried out by {other.__name__} already")
        _classes.append(cls)

    def __init__(self, services: Services) -> None:
        self.services = services

    @classmethod
    def request_type(cls) -> Any:
        """The Struct of what is asked: the method's arguments, and the peer's ID if it is for a peer's VM."""
        return cls.call.peer_args if cls.through_peer else cls.call.args

    def target(self, request: Any) -> str:
        """What the operation works on, in a word."""
        return self.call.about({name: getattr(request, name) for name in self.call.args.__struct_fields__})

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        """Refuse what can be refused before anything is written, note what was found, claim what is given once.

        Returns what gives the claims back when the operation has ended. Raises: any TwinshareError.
        """
        return nothing_claimed

    def claim(self, active: ActiveOperation) -> Release:
        """After a crash: claim again, at once and without waiting, what `admit` had claimed."""
        return nothing_claimed

    def locks(self, key: str, notes: Mapping[str, Any]) -> str:
        """The ID of what is locked while it works, so that such operations follow each other; empty for none."""
        return ""

    @abstractmethod
    async def do(self, active: ActiveOperation) -> Any:
        """Do it and return its result. It is run again from its first line after a crash, and finds what it did."""

    async def undo(self, active: ActiveOperation) -> None:
        """Take back what `do` did, however far it came. By default nothing: such an operation only goes forward."""

    @classmethod
    def has_undo(cls) -> bool:
        return cls.undo is not JournalledOperation.undo


_classes: list[type[JournalledOperation[Any]]] = []


def bind_operations(base: type, services: Any) -> Sequence[JournalledOperation[Any]]:
    """An instance of every registered subclass of `base`, with the services that they work with."""
    return [cls(services) for cls in _classes if issubclass(cls, base)]


def require_complete(services: Iterable[type]) -> Mapping[str, type[JournalledOperation[Any]]]:
    """Every registered class, by kind. Raises: TypeError naming the journalled methods that have no class."""
    have = {(cls.call.name, cls.through_peer) for cls in _classes}
    for method in all_methods(services).values():
        ways = [False, True] if method.by_asked_node else [False]
        if method.journalled and (missing := [way for way in ways if (method.name, way) not in have]):
            where = " on a peer's VM" if missing[0] else ""
            raise TypeError(f"{method.service.__name__}.{method.name}{where} has no class of JournalledOperation")
    return {cls.kind: cls for cls in _classes}
