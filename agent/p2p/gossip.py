"""What members tell each other: certificates, revocations, addresses. What is new to one, it passes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import msgspec
import structlog
import trio

from ...protocols.access import LOCAL_ADMIN, Caller
from ...protocols.errors import TwinshareError
from ...protocols.membership import Chain
from ...protocols.mesh import MAX_NEWS, Letter, MeshService, News, Whereabouts
from ...protocols.peer import MessageReply
from ...protocols.table import methods
from .calls import PeerCalls
from .host import PeerId
from .line import Line
from .links import Links
from .parts import Parts

log = structlog.get_logger(__name__)
MESH = methods(MeshService)
TELL_TIMEOUT = 10.0
FAN_OUT = 4


class Gossip:
    """`own` gives our own whereabouts; `changed` is called when members or their addresses are other than before."""

    def __init__(
        self,
        parts: Parts,
        links: Links,
        own: Callable[[], Whereabouts],
        changed: Callable[[], None],
        nursery: trio.Nursery,
    ) -> None:
        self._parts, self._links, self._own, self._changed, self._nursery = parts, links, own, changed, nursery
        self._calls = PeerCalls(links.line_to, parts.title)

    def bind(self, caller: Caller) -> BoundMesh:
        """The `MeshService` for one peer's calls."""
        return BoundMesh(self, self._parts, caller.principal)

    def everything(self) -> Iterator[News]:
        """All that we know, in as few pieces as the bounds allow: a fleet of a hundred is one call."""
        places = iter([self._own(), *self._parts.directory.whereabouts()])
        for news in self._parts.membership.everything():
            yield msgspec.structs.replace(news, whereabouts=list(islice(places, MAX_NEWS)))
        while rest := list(islice(places, MAX_NEWS)):
            yield News(whereabouts=rest)

    async def tell_everything(self, line: Line) -> None:
        for news in list(self.everything()):
            await self.tell(line.peer_id, news)

    async def tell(self, peer: PeerId, news: News) -> None:
        """To one peer; what does not arrive, it will hear again."""
        try:
            await self._calls.call(peer, MESH["tell"], {"news": news}, LOCAL_ADMIN, timeout=TELL_TIMEOUT)
        except TwinshareError as error:
            log.debug("news did not arrive", peer=peer, why=error.message)

    async def take(self, news: News, source: PeerId) -> None:
        """Learn, and pass on what was new."""
        learnt = await self._parts.membership.learn(news)
        fresh = [where for where in news.whereabouts if await self._take_whereabouts(where)]
        if new := News(members=learnt.members, revocations=learnt.revocations, whereabouts=fresh):
            self._changed()
            for where in fresh:
                self._links.poke(where.peer)
            self.spread(new, source)

    async def _take_whereabouts(self, where: Whereabouts) -> bool:
        membership = self._parts.membership
        if where.peer == membership.peer_id or membership.known(where.peer) is None:
            return False
        return await self._parts.directory.declare(where)

    def spread(self, news: News, source: PeerId | None = None) -> None:
        """Tell our own news to everybody who is online, and that of others to a few: they tell a few more."""
        peers = [line.peer_id for line in self._links.lines if line.peer_id != source]
        if source is not None:
            peers = self._parts.rng.sample(peers, min(FAN_OUT, len(peers)))
        for peer in peers:
            self._nursery.start_soon(self.tell, peer, news)

    async def compare(self) -> None:
        """Tell all that we know to one peer, by turns of chance: what went astray arrives after all."""
        if lines := self._links.lines:
            await self.tell_everything(self._parts.rng.choice(lines))

    async def spread_and_wait(self, news: News, patience: float) -> None:
        """Tell everybody who is online, and wait a while until they know."""
        with trio.move_on_after(patience):
            async with trio.open_nursery() as nursery:
                for line in self._links.lines:
                    nursery.start_soon(self.tell, line.peer_id, news)

    async def renew_with(self, peer: PeerId) -> None:
        """Ask a peer for a later certificate, if ours nears its end."""
        if not self._parts.membership.renewable:
            return
        try:
            chain: Chain = await self._calls.call(peer, MESH["renew"], {}, LOCAL_ADMIN, timeout=TELL_TIMEOUT)
        except TwinshareError as error:
            log.debug("no renewal", peer=peer, why=error.message)
            return
        await self.take(News(members=[chain]), source=peer)

    async def send(self, peer: PeerId, letter: Letter) -> MessageReply:
        """Raises: what calls raise."""
        reply: MessageReply = await self._calls.call(peer, MESH["deliver"], {"letter": letter}, LOCAL_ADMIN)
        return reply


class BoundMesh:
    """`MeshService` for one peer."""

    def __init__(self, gossip: Gossip, parts: Parts, peer: PeerId) -> None:
        self._gossip, self._parts, self._peer = gossip, parts, peer

    async def tell(self, news: News) -> None:
        await self._gossip.take(news, self._peer)

    async def deliver(self, letter: Letter) -> MessageReply:
        return deliver(self._parts, self._peer, letter)

    async def renew(self) -> Chain:
        return await self._parts.membership.renew(self._peer)


def deliver(parts: Parts, sender: PeerId, letter: Letter) -> MessageReply:
    """A message has come: greetings are answered, the rest is an event."""
    if letter.message_type == "HELLO":
        return MessageReply(status="ok", message="Hello received")
    known = parts.membership.known(sender)
    parts.publish(
        "p2p.message",
        {
            "from": sender,
            "name": known.name if known else "",
            "message_type": letter.message_type,
            "data": letter.data,
        },
    )
    return MessageReply(status="ok", message=f"{letter.message_type} received")
