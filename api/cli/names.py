"""The types of arguments: names that complete from the node, pairs, ports, durations."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ...protocols.access import Role
from ...protocols.errors import TwinshareError
from ...protocols.operation import OperationState
from ...protocols.vm import ForwardSpec

Word_ = TypeVar("Word_", bound=StrEnum)


class Named(click.ParamType[str]):
    """The name of something that a listing has; a shell completes it from the node."""

    def __init__(self, name: str, listing: str, *, with_peer: bool = True) -> None:
        self.name = name
        self._listing = listing
        self._with_peer = with_peer

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from .link import open_link

        peer = ctx.params.get("peer") if self._with_peer else None
        try:
            with open_link() as link:
                names = [found.name for found in link.call(self._listing, {}, peer)]
        except TwinshareError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class Word(click.ParamType[Word_]):
    """One of an enumeration's values."""

    def __init__(self, name: str, kind: type[Word_]) -> None:
        self.name = name
        self._kind = kind
        self._choice = click.Choice([str(one) for one in kind])

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self._choice.get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Word_:
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
        found = re.fullmatch(r"(?:(\d{1,5}):)?(\d{1,5})", value)
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
        found = re.fullmatch(r"(\d{1,9})([smhd]?)", value)
        if not found:
            self.fail(f"'{value}' is not a duration such as 90, 10m, 12h or 30d", param, ctx)
        return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


VM_NAME = Named("name", "list_vms")
IMAGE_NAME = Named("image", "list_images")
PEER_NAME = Named("peer", "list_peers", with_peer=False)
TOKEN_NAME = Named("name", "list_tokens", with_peer=False)
KEY_VALUE = KeyValue()
PORTS = Ports()
DURATION = Duration()
ROLE = Word("role", Role)
STATE = Word("state", OperationState)
