"""The types of arguments and options: names that complete from the node, pairs, ports, sizes, durations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ...protocols.access import Role
from ...protocols.errors import TwinshareError
from ...protocols.operation import OperationState
from ...protocols.vm import ForwardSpec

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from .node import NodeClient

Choice_ = TypeVar("Choice_", bound=StrEnum)
Command = TypeVar("Command", bound=Callable[..., Any])
Given = Mapping[str, Any]
"""What stands on the command line so far, by parameter; `peer` is `--on`."""
NamesOf = Callable[["NodeClient", Given], Iterable[str]]
_SIZE = re.compile(r"([0-9]{1,9})(?:([kmgt])(?:i?b)?)?", re.IGNORECASE)
_BYTES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Named(click.ParamType[str]):
    """The name of something that the node has; a shell completes it from there."""

    def __init__(self, name: str, names: NamesOf) -> None:
        self.name = name
        self._names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from .node import open_client

        try:
            with open_client() as client:
                names = list(dict.fromkeys(self._names(client, ctx.params)))
        except TwinshareError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class NamedPort(click.IntRange):
    """A port that the node has opened; a shell completes it from there."""

    def __init__(self, name: str, names: NamesOf) -> None:
        super().__init__(1, 65535)
        self._named = Named(name, names)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return self._named.shell_complete(ctx, param, incomplete)


def _listed(operation: str, key: str = "name", *, local: bool = False) -> NamesOf:
    """Return what completes from one listing; with `local`, one of the node itself whatever `--on` says."""
    return lambda client, given: (
        str(getattr(row, key))
        for row in client.call(operation, {}, None if local else given.get("peer"))
        if getattr(row, key)
    )


def _of_vm(operation: str, key: str) -> NamesOf:
    """Return what completes from a listing of the VM that is named before."""
    return lambda client, given: (
        str(getattr(row, key)) for row in client.call(operation, {"vm": given.get("name") or ""}, given.get("peer"))
    )


def _vm_names(client: NodeClient, given: Given) -> Iterable[str]:
    """The VMs of the node, and those of all others as NAME@NODE."""
    peer = given.get("peer")
    local = {(vm.name, vm.node) for vm in client.call("list_vms", {}, peer)}
    yield from (name for name, _ in local)
    if peer is None:
        with suppress(TwinshareError):  # the names of this node are worth showing alone
            yield from (f"{vm.name}@{vm.node}" for vm in client.fleet_vms() if (vm.name, vm.node) not in local)


def _image_names(client: NodeClient, given: Given) -> Iterable[str]:
    yield from _listed("list_images")(client, given)
    yield from _listed("list_catalogue")(client, given)


def _network_names(client: NodeClient, given: Given) -> Iterable[str]:
    yield from ("default", "isolated")
    yield from _listed("list_vms", "network")(client, given)


class EnumChoice(click.ParamType[Choice_]):
    """One of an enumeration's values."""

    def __init__(self, name: str, kind: type[Choice_]) -> None:
        self.name = name
        self._kind = kind
        self._choice = click.Choice([str(one) for one in kind])

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self._choice.get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Choice_:
        return self._kind(self._choice.convert(value, param, ctx))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return self._choice.shell_complete(ctx, param, incomplete)


class KeyValue(click.ParamType[tuple[str, str]]):
    name = "k=v"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, equals, text = value.partition("=")
        if not equals or not key:
            self.fail(f"'{value}' is not K=V", param, ctx)
        return key, text


class Ports(click.ParamType[ForwardSpec]):
    """HOST:GUEST, or GUEST alone: the node then chooses its own port."""

    name = "host:guest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ForwardSpec:
        if isinstance(value, ForwardSpec):
            return value
        found = re.fullmatch(r"(?:([0-9]{1,5}):)?([0-9]{1,5})", value)
        host, guest = (int(found[1] or 0), int(found[2])) if found else (0, 0)
        if not 0 < guest < 65536 or host > 65535:
            self.fail(f"'{value}' is not HOST:GUEST, two port numbers", param, ctx)
        return ForwardSpec(host_port=host, guest_port=guest)


class Duration(click.ParamType[int]):
    """Seconds, or a number with s, m, h or d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", value)
        if not found:
            self.fail(f"'{value}' is not a duration such as 90, 10m, 12h or 30d", param, ctx)
        return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


class Size(click.ParamType[int]):
    """A size in `unit` (`m` for MiB, `g` for GiB): a plain number, or one with K, M, G or T, all powers of 1024."""

    name = "size"

    def __init__(self, unit: str, minimum: int) -> None:
        self._unit, self._minimum = unit, minimum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        unit = f"{self._unit.upper()}iB"
        found = _SIZE.fullmatch(value)
        if not found:
            self.fail(f"'{value}' is not a size such as 512M or 2G (a plain number is {unit})", param, ctx)
        amount, rest = divmod(int(found[1]) * _BYTES[(found[2] or self._unit).lower()], _BYTES[self._unit])
        if rest:
            self.fail(f"'{value}' is not a whole number of {unit}", param, ctx)
        if amount < self._minimum:
            self.fail(f"'{value}' is less than {self._minimum} {unit}", param, ctx)
        return amount


VM_NAME = Named("name", _vm_names)
IMAGE_NAME = Named("image", _listed("list_images"))
IMAGE_SOURCE = Named("image", _image_names)
NETWORK_NAME = Named("network", _network_names)
PEER_NAME = Named("peer", _listed("list_peers", local=True))
TOKEN_NAME = Named("name", _listed("list_tokens", local=True))
SESSION_ID = Named("session", _of_vm("list_vm_sessions", "id"))
FORWARDED_PORT = NamedPort("port", _of_vm("list_forwards", "host_port"))
OPERATION_ID = Named("id", _listed("list_operations", "id"))
KEY_VALUE = KeyValue()
PORTS = Ports()
DURATION = Duration()
MEMORY = Size("m", 64)
DISK = Size("g", 1)
ROLE = EnumChoice("role", Role)
STATE = EnumChoice("state", OperationState)


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def peer_option(command: Command) -> Command:
    return click.option(
        "--on", "peer", metavar="PEER", type=PEER_NAME, help="Work on a peer: its name, its ID or the beginning of it."
    )(command)
