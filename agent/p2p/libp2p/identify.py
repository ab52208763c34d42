"""What any libp2p peer may ask of a member: `identify` tells who we are and from where we see it, `ping` echoes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify

from ....protocols.errors import TwinshareError
from ..addresses import Address
from ..host import Admission, Stream
from .multiaddr_bytes import from_bytes, to_bytes
from .peers import Live
from .serving import Served
from .swarm import Swarm
from .varint import BadMessage, MessageReader, write_message

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


def serve_identify(swarm: Swarm, public_key: bytes, addresses: Callable[[], Sequence[Address]]) -> None:
    """Answer `identify` and `ping`. `public_key` as libp2p's messages carry it; `addresses` are those of this host."""

    async def identify(stream: Stream) -> None:
        message = Identify(
            protocol_version=_PROTOCOL_VERSION,
            agent_version=_AGENT,
            public_key=public_key,
            listen_addrs=[to_bytes(address) for address in addresses()],
            protocols=swarm.serving.protocols,
        )
        if (seen := swarm.address_of(stream)) is not None:
            message.observed_addr = to_bytes(seen)
        await write_message(stream, message)

    swarm.serving.add(IDENTIFY, Served(identify, guests=False))
    swarm.serving.add(PING, Served(ping, guests=False))


async def ping(stream: Stream) -> None:
    """Echo blocks of 32 bytes until the peer has enough."""
    block = b""
    while data := await stream.receive_some(PING_SIZE - len(block)):
        block += data
        if len(block) == PING_SIZE:
            await stream.send_all(block)
            block = b""


OnIdentity: TypeAlias = Callable[[Live, Identity], None]


class Introductions:
    """Identify each newly connected member, if there is a subscriber."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._subscribers: list[OnIdentity] = []
        swarm.on_connection(self._consider)

    def subscribe(self, callback: OnIdentity) -> None:
        """Call `callback` with the identity of each member that connects."""
        self._subscribers.append(callback)

    def unsubscribe(self, callback: OnIdentity) -> None:
        self._subscribers.remove(callback)

    def _consider(self, live: Live) -> None:
        if self._subscribers and self._swarm.admission(live) is Admission.MEMBER:
            self._swarm.nursery.start_soon(self._introduce, live)

    async def _introduce(self, live: Live) -> None:
        try:
            identity = await ask_identity(self._swarm, live, deadline=_TIMEOUT)
        except TwinshareError:
            return
        if identity is not None:
            for callback in list(self._subscribers):
                callback(live, identity)


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
