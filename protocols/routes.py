"""The decorators that make a service's method an operation, of REST and of peers or of peers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from .access import Role

Function = TypeVar("Function", bound=Callable[..., Any])
READS = frozenset({"GET", "PEER"})
MAX_ARGUMENTS = 256 << 10
"""Bytes of one call's packed arguments, where the method does not say otherwise."""


class rest(msgspec.Struct, frozen=True):  # noqa: N801 - a decorator, written as one
    """Give a method its REST route `path` below a dialect's root, and the role that it needs.

    `local` keeps it from peers: it exists under `/api` alone, never under `/api/remote/<peer>` or on the peer protocol.
    `journalled=False` is for a mutation that the journal does not keep. `by_asked_node` marks a method that, on a
    peer's VM, is carried out by the node that is asked. `in_query`: the parameters are in the query, as those of a GET.
    `answer` is the type of the REST body where it is not the result, `remote_answer` the one under
    `/api/remote/<peer>` (protocols/bodies.py). `example` is a request body.
    `newest` bounds a list: the result is the newest so many rows, by `created_at`, and the parameter `until` goes on
    behind them. `cached_rows`: a row that has not changed is the same object in the next result.
    `max_arguments` are the bytes of packed arguments that a peer may send.
    `wire_name` and `wire_argument` are the names of the method and of its only argument on the peer protocol, where
    these are not the names that the code uses.
    """

    verb: str
    path: str
    role: Role
    local: bool = False
    journalled: bool = True
    by_asked_node: bool = False
    in_query: bool = False
    answer: Any = None
    remote_answer: Any = None
    example: Any = None
    newest: int = 0
    cached_rows: bool = False
    max_arguments: int = MAX_ARGUMENTS
    wire_name: str = ""
    wire_argument: str = ""

    def __call__(self, function: Function) -> Function:
        function.__dict__["rest"] = self
        return function


def peers_only(
    role: Role, *, max_arguments: int = MAX_ARGUMENTS, wire_name: str = "", wire_argument: str = ""
) -> Callable[[Function], Function]:
    """Make a method an operation of the peer protocol alone: no route leads to it, no journal keeps it."""
    return rest("PEER", "", role, max_arguments=max_arguments, wire_name=wire_name, wire_argument=wire_argument)
