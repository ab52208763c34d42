"""Tunnels: a stream to a peer for each connection, at whose far end a guest's port is dialled.

The near end asks, the far end decides as the owner of the VM: the peer's certificate and the role of whoever asks, the
lower of both. After one frame each way the bytes are the guest's; half-closes and back-pressure are the stream's own.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TypeVar

import msgspec
import structlog
import trio

from ...protocols.access import Caller, Role
from ...protocols.blob import BlobAnswer
from ...protocols.console import ConsoleFrame
from ...protocols.errors import Overloaded, PeerMisbehaved, PeerUnreachable, TwinshareError, Unavailable
from ...protocols.tunnel import HEAD, PROTOCOL, TunnelAnswer, TunnelRequest, decode, encode, length_of
from ..p2p.host import PeerId, Stream
from ..p2p.mesh_client import MeshClient
from ..streams import carry
from ..vm.context import VmContext

log = structlog.get_logger(__name__)

MAX_TUNNELS = 256
"""Connections that a peer may have at once."""
OPENING = 15.0
"""Seconds for both frames, and for the guest to be dialled."""
PROBING = 5.0
"""Seconds for both frames when no guest is dialled: somebody waits for the answer."""

Frame = TypeVar("Frame", bound=msgspec.Struct)
Answer = TypeVar("Answer", TunnelAnswer, ConsoleFrame, BlobAnswer)


async def open_tunnel(mesh: MeshClient, peer: PeerId, request: TunnelRequest) -> tuple[TunnelAnswer, Stream]:
    """A stream on which the guest's bytes follow. Raises: what the owner raises; P2pStopped, PeerUnreachable."""
    within = PROBING if request.probe else OPENING
    return await ask_on_stream(mesh, peer, PROTOCOL, request, TunnelAnswer, within)


async def ask_on_stream(
    mesh: MeshClient, peer: PeerId, protocol: str, request: msgspec.Struct, kind: type[Answer], within: float = OPENING
) -> tuple[Answer, Stream]:
    """A new stream to a peer after one frame each way, `within` so many seconds.

    Raises: what the owner raises; P2pStopped, PeerUnreachable.
    """
    running = mesh.require_running()
    with trio.move_on_after(within):
        await running.sessions.session_to(peer)
        stream = await running.host.open_stream(peer, protocol)
        try:
            await stream.send_all(encode(request))
            answer = await receive_frame(stream, kind)
            if answer.error is not None:
                raise TwinshareError.from_wire(answer.error)
        except BaseException as error:
            stream.reset()
            if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
                raise PeerUnreachable("the connection with the peer was lost", peer=peer) from None
            raise
        return answer, stream
    raise PeerUnreachable(f"the peer did not answer within {within:g} s", peer=peer)


class TunnelServer:
    """The owner's end."""

    def __init__(self, vms: VmContext) -> None:
        self._vms = vms
        self._open: dict[PeerId, int] = {}

    async def serve(self, caller: Caller, stream: Stream) -> None:
        """One tunnel, from its first frame to its end; `caller` is the peer."""
        peer = caller.principal
        self._open[peer] = self._open.get(peer, 0) + 1
        try:
            async with AsyncExitStack() as opened:
                far = await self._begin(caller, stream, opened)
                if far is not None:
                    await carry(stream, far)
        except (trio.BrokenResourceError, trio.ClosedResourceError, PeerMisbehaved) as error:
            log.debug("a tunnel ended before it began", peer=peer, why=str(error))
            stream.reset()
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    async def _begin(self, caller: Caller, stream: Stream, opened: AsyncExitStack) -> trio.SocketStream | None:
        """The guest's port, if there is to be one, which `opened` closes; the answer is sent."""
        with trio.move_on_after(OPENING):
            request = await receive_frame(stream, TunnelRequest)
            far = None
            try:
                answer, far = await self._reach(caller, request)
            except TwinshareError as error:
                answer = TunnelAnswer(error=error.to_wire())
            except OSError:
                closed = Unavailable(f"nothing in the guest answers on port {request.port}")
                answer = TunnelAnswer(error=closed.to_wire())
            if far is not None:
                opened.push_async_exit(far)
            await stream.send_all(encode(answer))
            return far
        stream.reset()
        return None

    async def _reach(self, caller: Caller, request: TunnelRequest) -> tuple[TunnelAnswer, trio.SocketStream | None]:
        asker = caller.acting_for(request.principal, request.role)
        asker.require(Role.OPERATOR, "add_forward")
        record = self._vms.owned(asker, request.vm)
        answer = TunnelAnswer(vm_id=record.domain.id, vm_name=record.domain.name)
        if self._open[caller.principal] > MAX_TUNNELS:
            raise Overloaded(f"{MAX_TUNNELS} connections through tunnels at once are allowed", retry_after=5)
        if request.probe:
            return answer, None
        return answer, await self._vms.forwards.dial(record, request.port)


async def receive_frame(stream: Stream, kind: type[Frame]) -> Frame:
    """The frame and not a byte more. Raises: PeerMisbehaved, trio.BrokenResourceError."""
    return decode(await _exactly(stream, length_of(await _exactly(stream, HEAD.size))), kind)


async def _exactly(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            raise PeerMisbehaved("the peer closed a stream where a frame was due")
        data += part
    return data
