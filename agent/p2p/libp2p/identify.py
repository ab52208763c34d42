"""What any libp2p peer may ask of a member: `identify` tells who we are and from where we see it, `ping` echoes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify

from ....protocols.errors import TwinshareError
from ..addresses import Address, parse
from ..host import Admission, Stream
from .multiaddr_bytes import from_bytes, to_bytes
from .varint import BadMessage, MessageReader, write_message

if TYPE_CHECKING:
    from .host import LibP2pHost
    from .peers import Live
    from .swarm import Swarm

IDENTIFY: Final = "/ipfs/id/1.0.0"
PING: Final = "/ipfs/ping/1.0.0"
PING_SIZE: Final = 32
_PROTOCOL_VERSION: Final = "ipfs/0.1.0"
_AGENT: Final = "twinshare"
_MAX_ADDRESSES: Final = 16
_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a peer says of itself: hints, all of it. `observed` is the address from which it sees us."""

    agent: str
    protocols: list[str]
    addresses: list[Address]
    observed: Address | None


def serve_identify(host: LibP2pHost) -> None:
    """Answer `identify` and `ping` on this host."""

    async def identify(stream: Stream) -> None:
        seen = host.address_of(stream)
        message = Identify(
            protocol_version=_PROTOCOL_VERSION,
            agent_version=_AGENT,
            public_key=host.public_key,
            listen_addrs=[to_bytes(parse(address)) for address in host.addresses],
            protocols=host.protocols,
        )
        if seen is not None:
            message.observed_addr = to_bytes(seen)
        await write_message(stream, message)

    host.serve(IDENTIFY, identify)
    host.serve(PING, ping)


async def ping(stream: Stream) -> None:
    """Echo blocks of 32 bytes until the peer has enough."""
    block = b""
    while data := await stream.receive_some(PING_SIZE - len(block)):
        block += data
        if len(block) == PING_SIZE:
            await stream.send_all(block)
            block = b""


class Introductions:
    """Asks each member that is newly connected who it is, if anybody wants to know."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self.listeners: list[Callable[[Live, Identity], None]] = []

    def consider(self, live: Live) -> None:
        if self.listeners and self._swarm.admission(live) is Admission.MEMBER:
            self._swarm.nursery.start_soon(self._introduce, live)

    async def _introduce(self, live: Live) -> None:
        try:
            told = await ask_identity(self._swarm, live, deadline=_TIMEOUT)
        except TwinshareError:
            return
        if told is not None:
            for listener in list(self.listeners):
                listener(live, told)


async def ask_identity(swarm: Swarm, live: Live, *, deadline: float) -> Identity | None:
    """Ask a peer who it is; None when it does not answer well. Raises: PeerUnreachable, Unsupported, Overloaded."""
    stream = await swarm.open_stream(live, IDENTIFY, deadline)
    try:
        with trio.move_on_after(deadline):
            message = await MessageReader(stream).read(Identify())
            return None if message is None else _understand(message)
    except (BadMessage, trio.BrokenResourceError):
        return None
    finally:
        stream.reset()
    return None


def _understand(message: Identify) -> Identity:
    addresses = [_address(each) for each in message.listen_addrs[:_MAX_ADDRESSES]]
    return Identity(
        agent=message.agent_version[:128],
        protocols=[protocol[:256] for protocol in message.protocols[:256]],
        addresses=[address for address in addresses if address is not None],
        observed=_address(message.observed_addr),
    )


def _address(data: bytes) -> Address | None:
    try:
        return from_bytes(data)
    except ValueError:
        return None
