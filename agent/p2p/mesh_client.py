"""Peers as this node calls them: found by name, reached over the services of the mesh while these are on."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import trio

from ...protocols.access import Caller
from ...protocols.errors import AmbiguousName, Forbidden, PeerNotFound
from ...protocols.method import Method
from .context import MeshContext
from .expected_sockets import ExpectedSocket
from .host import PeerId
from .mesh_services import MeshServices, stopped


class MeshClient:
    """Resolves and calls peers. It is made before what the node serves; `Mesh` switches its services on and off."""

    def __init__(self, context: MeshContext) -> None:
        self.context = context
        self.peer_id = context.membership.peer_id
        self._running: MeshServices | None = None
        self._switched = trio.Event()

    @property
    def running(self) -> MeshServices | None:
        """The services, None while they are off."""
        return self._running

    def require_running(self) -> MeshServices:
        """Raises: P2pStopped."""
        if self._running is None:
            raise stopped()
        return self._running

    def switched(self, services: MeshServices | None) -> None:
        """Take note that the services are on, or off."""
        self._running = services
        self._switched.set()

    async def wait_until_switched(self, timeout: float) -> None:
        """Wait until the services are on, or are to stay off, for `timeout` seconds at most.

        An operation that goes on when a node starts may need peers before the mesh is there.
        """
        with trio.move_on_after(timeout):
            await self._switched.wait()

    def resolve(self, ref: str) -> PeerId:
        """The peer that a user means: an ID, a name, or the only one whose ID begins so; `local` is this node.

        Raises: PeerNotFound, AmbiguousName listing those that could be meant.
        """
        if ref == "local":
            return self.peer_id
        names = {peer.sub: peer.name for peer in self.context.membership.peers}
        names[self.peer_id] = self.context.name
        if ref in names or self.context.membership.known(ref) is not None:
            return ref
        meant = [peer for peer, name in names.items() if name == ref]
        meant = meant or [peer for peer in names if peer.startswith(ref)]
        if not meant:
            raise PeerNotFound(f"no peer of this fleet is called '{ref}'", peer=ref)
        if len(meant) > 1:
            listed = ", ".join(f"{names[peer]} ({peer})" for peer in sorted(meant))
            raise AmbiguousName(f"'{ref}' may be any of {listed}", peers=sorted(meant))
        return meant[0]

    def expect_socket(self, peer: PeerId, ticket: str) -> AbstractContextManager[ExpectedSocket]:
        """As `Host.expect_socket`. Raises: P2pStopped, PeerUnreachable."""
        return self.require_running().host.expect_socket(peer, ticket)

    async def dial_socket(self, peer: PeerId, ticket: str, port: int) -> socket.socket:
        """As `Host.dial_socket`. Raises: P2pStopped, PeerUnreachable."""
        return await self.require_running().host.dial_socket(peer, ticket, port)

    async def call(self, peer: str, method: Method, arguments: Mapping[str, Any], caller: Caller) -> Any:
        """Call any operation of another node.

        Raises: what the operation raises; Detached; Forbidden, P2pStopped, PeerNotFound, AmbiguousName,
        PeerUnreachable, PeerMisbehaved, DeadlineExceeded.
        """
        running = self.require_running()
        peer_id = self.resolve(peer)
        if method.local:
            raise Forbidden(f"{method.name} is for a node's own users; call it on {peer} itself")
        caller.require(method.role, method.name)
        return await running.calls.call(peer_id, method, arguments, caller)
