"""The shell of the table: answers what members ask, asks them, and keeps the table fresh."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

import structlog
import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record

from .....protocols.errors import TwinshareError
from ....background import open_background
from ...addresses import Address, parse
from ...host import Admission, Direction, PeerId, Stream
from ..host import LibP2pHost
from ..identify import Identity
from ..multiaddr_bytes import from_bytes, peer_id_from_bytes, peer_id_to_bytes, to_bytes
from ..peers import Live
from ..varint import BadMessage, MessageReader, write_message
from .store import RecordStore, Validate
from .table import MAX_ADDRESSES, NEAREST, Contact, Lookup, RoutingTable, place, place_of_peer

log = structlog.get_logger(__name__)

DHT: Final = "/twinshare/kad/1.0.0"
_ASK_TIME: Final = 5.0
_DIAL_TIME: Final = 3.0
_IDLE_TIME: Final = 60.0
_REFRESH_EVERY: Final = 600.0
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class Dht:
    """Made by `open_dht`. Everything that it returns comes from others: hints."""

    def __init__(self, host: LibP2pHost, validate: Validate) -> None:
        self._host = host
        self._table = RoutingTable(host.peer_id)
        self._store = RecordStore(validate)
        self._own: dict[bytes, bytes] = {}

    @property
    def size(self) -> int:
        """Peers in the table."""
        return len(self._table)

    async def put(self, key: bytes, value: bytes) -> int:
        """Give the value to the peers nearest to the key, now and whenever the table is refreshed.

        Returns how many took it.
        """
        self._own[key] = value
        self._store.put(key, value, trio.current_time())
        return await self._give(key, value)

    async def get(self, key: bytes) -> bytes | None:
        """The value with the highest number that the network and we have."""
        values = [value for value in [self._store.get(key, trio.current_time())] if value is not None]

        def take(answer: Message) -> None:
            if answer.HasField("record") and answer.record.key == key:
                values.append(answer.record.value)

        await self._look_up(place(key), Message(type=Message.GET_VALUE, key=key), take)
        numbered = [(number, value) for value in values if (number := self._store.number(key, value)) is not None]
        return max(numbered)[1] if numbered else None

    async def find_peer(self, peer_id: PeerId) -> list[str]:
        """Where others say that a peer is."""
        question = Message(type=Message.FIND_NODE, key=peer_id_to_bytes(peer_id))
        lookup = await self._look_up(place_of_peer(peer_id), question, lambda _: None)
        contact = lookup.known(peer_id)
        return [str(address) for address in contact.addresses] if contact else []

    async def refresh(self) -> None:
        """Look for our own neighbours, and give out our records again."""
        own = Message(type=Message.FIND_NODE, key=peer_id_to_bytes(self._host.peer_id))
        await self._look_up(place_of_peer(self._host.peer_id), own, lambda _: None)
        for key, value in list(self._own.items()):
            await self._give(key, value)

    def meet(self, live: Live, identity: Identity) -> None:
        """A member introduced itself."""
        if DHT in identity.protocols:
            addresses = [parse(live.info.address)] if live.info.direction is Direction.OUTBOUND else []
            self._table.add(Contact(live.info.peer_id, tuple([*addresses, *identity.addresses][:MAX_ADDRESSES])))

    async def run(self) -> None:
        while True:
            await trio.sleep(_REFRESH_EVERY)
            await self.refresh()

    # -- asking

    async def _give(self, key: bytes, value: bytes) -> int:
        lookup = await self._look_up(place(key), Message(type=Message.FIND_NODE, key=key), lambda _: None)
        message = Message(type=Message.PUT_VALUE, key=key, record=_record(key, value))
        taken = 0

        async def give(contact: Contact) -> None:
            nonlocal taken
            answer = await self._ask(contact, message)
            taken += answer is not None and answer.record.value == value

        async with trio.open_nursery() as nursery:
            for contact in lookup.found:
                nursery.start_soon(give, contact)
        return taken

    async def _look_up(self, target: int, question: Message, take: Callable[[Message], None]) -> Lookup:
        lookup = Lookup(self._host.peer_id, target, self._table.nearest(target))
        answered = trio.Event()

        async def ask(contact: Contact) -> None:
            answer = await self._ask(contact, question)
            if answer is None:
                lookup.failed(contact.peer_id)
                self._table.remove(contact.peer_id)
            else:
                take(answer)
                lookup.answered(contact.peer_id, [each for each in map(_contact, answer.closerPeers[:NEAREST]) if each])
            answered.set()

        async with trio.open_nursery() as nursery:
            while not lookup.over:
                answered = trio.Event()
                for contact in lookup.next():
                    nursery.start_soon(ask, contact)
                await answered.wait()
        return lookup

    async def _ask(self, contact: Contact, question: Message) -> Message | None:
        """None when it cannot be asked or gives no good answer."""
        if self._host.swarm.upgrader.gate(contact.peer_id, Direction.OUTBOUND) is not Admission.MEMBER:
            return None
        stream = None
        try:
            addresses = [str(address) for address in contact.addresses]
            await self._host.connect(contact.peer_id, addresses, deadline=_DIAL_TIME)
            stream = await self._host.open_stream(contact.peer_id, DHT)
            with trio.move_on_after(_ASK_TIME):
                await write_message(stream, question)
                return await MessageReader(stream).read(Message())
        except (TwinshareError, BadMessage, *_BROKEN) as error:
            log.debug("no answer from the table", peer=contact.peer_id, reason=str(error))
        finally:
            if stream is not None:
                stream.reset()
        return None

    # -- answering

    async def handle(self, stream: Stream) -> None:
        reader = MessageReader(stream)
        try:
            while True:
                with trio.fail_after(_IDLE_TIME):
                    question = await reader.read(Message())
                    if question is None:
                        return
                    await write_message(stream, self._answer(stream.peer_id, question))
        except (BadMessage, trio.TooSlowError) as error:
            log.debug("a bad question", peer=stream.peer_id, reason=str(error))
            stream.reset()

    def _answer(self, peer_id: PeerId, question: Message) -> Message:
        """Raises: BadMessage for what we do not keep, providers for instance."""
        key, now = question.key, trio.current_time()
        if question.type == Message.PING:
            return question
        if question.type == Message.PUT_VALUE:
            if question.record.key != key or not self._store.put(key, question.record.value, now):
                raise BadMessage("a record that is not valid, or not new")
            return question
        if question.type not in (Message.GET_VALUE, Message.FIND_NODE):
            raise BadMessage(f"a question of kind {question.type}")
        answer = Message(type=question.type, key=key)
        value = self._store.get(key, now) if question.type == Message.GET_VALUE else None
        if value is not None:
            answer.record.CopyFrom(_record(key, value))
        near = self._table.nearest(place(key), NEAREST + 1)
        answer.closerPeers.extend([_peer(each) for each in near if each.peer_id != peer_id][:NEAREST])
        return answer


def _record(key: bytes, value: bytes) -> Record:
    return Record(key=key, value=value, timeReceived=datetime.now(UTC).isoformat().replace("+00:00", "Z"))


def _peer(contact: Contact) -> Message.Peer:
    return Message.Peer(
        id=peer_id_to_bytes(contact.peer_id), addrs=[to_bytes(_bare(address)) for address in contact.addresses]
    )


def _contact(peer: Message.Peer) -> Contact | None:
    """None for a peer that cannot be one of ours."""
    try:
        peer_id = peer_id_from_bytes(peer.id)
    except ValueError:
        return None
    addresses = []
    for data in peer.addrs[:MAX_ADDRESSES]:
        try:
            address = from_bytes(data)
        except ValueError:
            continue
        if address.peer_id in (None, peer_id):
            addresses.append(address)
    return Contact(peer_id, tuple(addresses))


def _bare(address: Address) -> Address:
    return parse(str(address).rpartition("/p2p/")[0]) if address.peer_id else address


@asynccontextmanager
async def open_dht(host: LibP2pHost, validate: Validate) -> AsyncIterator[Dht]:
    """Take part in the fleet's table. `validate` says which records we keep and believe."""
    dht = Dht(host, validate)
    host.serve(DHT, dht.handle)
    host.introductions.subscribe(dht.meet)
    async with open_background() as nursery:
        nursery.start_soon(dht.run)
        try:
            yield dht
        finally:
            host.introductions.unsubscribe(dht.meet)
            host.swarm.serving.remove(DHT)
