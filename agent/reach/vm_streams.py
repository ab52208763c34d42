"""Streams of VMs, here and on peers: serial consoles, screens, and what runs in guests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from ...protocols.access import Caller, Role
from ...protocols.console import PROTOCOL as CONSOLE
from ...protocols.console import SCREEN_PROTOCOL as SCREEN
from ...protocols.console import ConsoleRequest
from ...protocols.guest_stream import StreamRequest
from ..guest.access import GuestAccess
from ..guest.port import GuestStream
from ..p2p.mesh_client import MeshClient
from .consoles import Console, Consoles
from .remote_console import Attach, open_remote_console
from .remote_guest import PeerAudit, open_remote_guest_stream
from .screens import Screens
from .vm_places import VmPlaces


@dataclass(frozen=True, slots=True)
class _Kind:
    """The console or the screen: its name in the audit log, its protocol between peers, and how it is opened here."""

    name: str
    protocol: str
    attach: Attach


class VmStreams:
    """Opens streams for callers of this node's API."""

    def __init__(
        self,
        places: VmPlaces,
        peers: MeshClient,
        audit_sink: PeerAudit,
        consoles: Consoles,
        screens: Screens,
        guests: GuestAccess,
    ) -> None:
        self._places, self._peers, self._audit_sink, self._guests = places, peers, audit_sink, guests
        self._console = _Kind("open_console", CONSOLE, consoles.attach)
        self._screen = _Kind("open_screen", SCREEN, screens.attach)

    def console(self, caller: Caller, vm: str, peer: str | None) -> AbstractAsyncContextManager[Console]:
        """The serial console of a VM, here or on a peer, until the block is left.

        Raises: what `Consoles.attach` and `VmPlaces` raise; P2pStopped, PeerUnreachable.
        """
        return self._attached(self._console, caller, vm, peer)

    def screen(self, caller: Caller, vm: str, peer: str | None) -> AbstractAsyncContextManager[Console]:
        """The screen of a VM, here or on a peer, as bytes of RFB until the block is left.

        Raises: what `Screens.attach` and `VmPlaces` raise; P2pStopped, PeerUnreachable.
        """
        return self._attached(self._screen, caller, vm, peer)

    @asynccontextmanager
    async def guest(
        self, caller: Caller, vm: str, request: StreamRequest, peer: str | None
    ) -> AsyncIterator[GuestStream]:
        """A stream into the guest of a VM, here or on a peer, until the block is left.

        Raises: what `GuestAccess.open` and `VmPlaces` raise; P2pStopped, PeerUnreachable.
        """
        async with AsyncExitStack() as stack:

            async def open_there(name: str, at: str | None) -> GuestStream:
                peer_id = self._places.far(at)
                if peer_id is None:
                    opening = self._guests.open(caller, name, request)
                else:
                    opening = open_remote_guest_stream(self._peers, self._audit_sink, caller, peer_id, name, request)
                return await stack.enter_async_context(opening)

            yield await self._places.at_its_node(caller, vm, peer, open_there)

    @asynccontextmanager
    async def _attached(self, kind: _Kind, caller: Caller, vm: str, peer: str | None) -> AsyncIterator[Console]:
        async with AsyncExitStack() as stack:

            async def attach(name: str, at: str | None) -> Console:
                return await stack.enter_async_context(self._attach(kind, caller, name, at))

            yield await self._places.at_its_node(caller, vm, peer, attach)

    @asynccontextmanager
    async def _attach(self, kind: _Kind, caller: Caller, vm: str, peer: str | None) -> AsyncIterator[Console]:
        peer_id = self._places.far(peer)
        if peer_id is None:
            async with kind.attach(caller, vm) as stream:
                yield stream
            return
        request = ConsoleRequest(vm=vm, role=caller.role, principal=caller.delegate)
        async with self._audit_sink(caller, kind.name, vm, at_peer=peer_id):
            caller.require(Role.OPERATOR, kind.name)
            async with open_remote_console(self._peers, peer_id, request, kind.protocol) as stream:
                yield stream
