"""Images of peers: who of the fleet has one, fetching it from them, and letting members read ours.

A name says nothing of what is under it, so an image is taken only from members that may put one here anyway: operators.
Whoever may look at a node may read its images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from ...protocols.access import Caller, Role
from ...protocols.blob import PROTOCOL, BlobAnswer, BlobRequest, BulkOffer
from ...protocols.errors import (
    InvalidRequest,
    Overloaded,
    PeerMisbehaved,
    PeerUnreachable,
    QuotaExceeded,
    TwinshareError,
)
from ...protocols.image import Image
from ...protocols.image_service import ImageService
from ...protocols.operation import Progress
from ...protocols.reference import LOCAL, Reference, parse_reference
from ...protocols.table import methods
from ...protocols.tunnel import encode
from ..images.peer_pull import Source, pull_from_peers
from ..images.peer_serve import SharedDisk, open_disk, serve_chunks
from ..images.port import ImportRequest, Origin, Report, Requester
from ..images.store import DiskImageStore
from ..images.tag_index import parse_new_name
from ..p2p.host import PathKind, PeerId, Stream
from ..p2p.mesh_client import MeshClient
from ..vm.image_resolver import Asked
from .bulk_lines import BulkLines, Expect, open_bulk
from .tunnel import OPENING, ask_on_stream, receive_frame

log = structlog.get_logger(__name__)

GET_IMAGE = methods(ImageService)["get_image"]
READER = Caller(principal="local", role=Role.VIEWER)
ANSWER_TIMEOUT = 3.0
"""Seconds in which a peer must say whether it has an image."""
SETTLE = 2.0
"""Seconds that a node which has just started waits for its peers."""
ABSENCE = 60.0
"""Seconds that a member is waited for which was reachable so many seconds ago."""
ABSENCES = 10
"""How often members may be absent during one fetch."""
PAUSE = 0.5
"""Seconds before a member that did not answer is asked again."""
MAX_READERS, MAX_READERS_OF_PEER = 32, 8


@dataclass(frozen=True, slots=True)
class Offer:
    """An image, and the members that have it."""

    image: Image
    peers: Sequence[PeerId]


@dataclass(slots=True)
class FleetImages:
    """Images of members. An operation that goes on when a node starts may ask before the mesh is on: it waits."""

    store: DiskImageStore
    mesh: MeshClient

    async def has(self, ref: str) -> bool:
        """Whether a member has the image, or one may that was here a moment ago. Raises: InvalidRequest."""
        offer, silent = await self._find(ref)
        return offer is not None or bool(self._absent(ref, silent))

    async def fetch(self, ref: str, asked: Asked, report: Report, *, wait: bool) -> Image | None:
        """Fetch the image that members call `ref`, from all that have it.

        A member that restarts meanwhile is waited for, `ABSENCE` seconds each time; with `wait` also before it is known
        who has the image. None when no member has it.
        Raises: PeerUnreachable, PeerMisbehaved and what peers say, when it cannot be brought; InsufficientResources.
        """
        failure: PeerUnreachable | None = None
        absent: Sequence[PeerId] = ()
        for _ in range(ABSENCES):
            failure = None
            offer, silent = await self._find(ref)
            if offer is not None:
                try:
                    return await self._fetch(ref, offer, asked, report)
                except PeerUnreachable as error:
                    failure = error
            absent = self._absent(ref, silent) if failure or wait else []
            if offer is not None:
                absent = [peer for peer in absent if peer in offer.peers]
            if not absent or not await self._comes_back(absent, report):
                break
        if failure is not None:
            raise failure
        if absent:
            raise PeerUnreachable(
                f"no member that can be reached has '{ref}', and {self._named(absent)} did not return"
            )
        return None

    async def _fetch(self, ref: str, offer: Offer, asked: Asked, report: Report) -> Image:
        sources = [self._source(peer) for peer in offer.peers]
        wanted = parse_new_name(asked.name) if asked.name else self._name(parse_reference(ref), offer.image)
        origin = Origin(labels=offer.image.labels, requester=Requester(asked.caller), raw=asked.raw)
        return await pull_from_peers(self.store, offer.image.digest, sources, ImportRequest(wanted, origin, report))

    def _absent(self, ref: str, silent: Sequence[PeerId]) -> list[PeerId]:
        """Members that may have the image and were here a moment ago, with those that did not answer just now."""
        running = self.mesh.running
        if running is None or not _is_shared(parse_reference(ref)):
            return []
        return [peer for peer in {*silent, *running.sessions.absent(ABSENCE)} if self._trusted(peer)]

    async def _comes_back(self, absent: Sequence[PeerId], report: Report) -> bool:
        """Whether one of the members does within `ABSENCE` seconds."""
        running = self.mesh.running
        if running is None:
            return False
        report(Progress(message=f"waiting for {self._named(absent)}, reachable a moment ago"))
        with trio.move_on_after(ABSENCE):
            await trio.sleep(PAUSE)
            await running.sessions.wait_for_any(absent)
            return True
        return False

    def _named(self, peers: Sequence[PeerId]) -> str:
        return ", ".join(self.mesh.context.title(peer) for peer in peers)

    def _source(self, peer: PeerId) -> Source:
        async def ask(request: BlobRequest) -> tuple[BlobAnswer, Stream]:
            return await ask_on_stream(self.mesh, peer, PROTOCOL, request, BlobAnswer)

        return Source(
            self.mesh.context.title(peer), ask, lambda request: open_bulk(self.mesh.dial_socket, ask, request)
        )

    def _name(self, wanted: Reference, image: Image) -> Reference:
        """What it is called here: by the name that was asked for; what was asked for by digest, as it is there."""
        if not wanted.digest:
            return wanted
        short = image.digest.partition(":")[2][:12]
        with suppress(InvalidRequest):  # it is the peer's word
            there = parse_new_name(str(Reference(registry=image.registry, name=image.name, tag=image.tag)))
            held = self.store.repository.tags.names.get(there)
            if held is None or held.digest == image.digest:
                return there
            return Reference(registry=there.registry, name=there.name, tag=short)
        return Reference(registry=LOCAL, name="image", tag=short)

    async def _find(self, ref: str) -> tuple[Offer | None, Sequence[PeerId]]:
        """What members offer, and the members that did not answer."""
        wanted = parse_reference(ref)
        await self.mesh.wait_until_switched(SETTLE)
        running = self.mesh.running
        if running is None or not _is_shared(wanted):
            return None, ()
        await running.sessions.wait_until_tried(SETTLE)
        found: dict[PeerId, Image] = {}
        silent: list[PeerId] = []
        async with trio.open_nursery() as nursery:
            for session in running.sessions.live:
                if self._trusted(session.peer_id):
                    nursery.start_soon(self._ask, session.peer_id, ref, found, silent)
        images = {image.digest: image for image in found.values() if wanted.digest in {"", image.digest}}
        if not images:
            return None, silent
        # One name, several contents: what most have, and of those the newest.
        votes = Counter(image.digest for image in found.values())
        best = max(images.values(), key=lambda image: (votes[image.digest], image.created_at))
        peers = [peer for peer, image in found.items() if image.digest == best.digest]
        # A third member's machine carries what comes through a relay: gigabytes only where there is no other way.
        return Offer(best, [peer for peer in peers if running.host.path(peer) is PathKind.DIRECT] or peers), silent

    def _trusted(self, peer: PeerId) -> bool:
        certificate = self.mesh.context.membership.valid_certificate(peer)
        return certificate is not None and certificate.role.includes(Role.OPERATOR)

    async def _ask(self, peer: PeerId, ref: str, found: dict[PeerId, Image], silent: list[PeerId]) -> None:
        with suppress(TwinshareError), trio.move_on_after(ANSWER_TIMEOUT) as scope:
            try:
                image: Image = await self.mesh.call(peer, GET_IMAGE, {"image": ref}, READER)
            except PeerUnreachable:
                silent.append(peer)
                return
            if not image.damaged and image.size <= self.store.max_size:
                found[peer] = image
        if scope.cancelled_caught:
            silent.append(peer)


def _is_shared(wanted: Reference) -> bool:
    """Whether members may have it: a registry's digest is not known to them, and localhost is another on each."""
    return not wanted.digest.startswith("sha256:") and not wanted.registry.startswith(("localhost", "127.", "[::1]"))


class BlobServer:
    """The end of whoever has the image."""

    def __init__(self, store: DiskImageStore, expect: Expect) -> None:
        self._store = store
        self._bulk = BulkLines(expect)
        self._readers: Counter[PeerId] = Counter()

    async def serve(self, caller: Caller, stream: Stream) -> None:
        """One stream, from the first question to its end; `caller` is the peer."""
        peer = caller.principal
        # Connections for bulk have places of their own, and their streams carry nothing.
        of_peer, in_all = self._bulk.count(peer)
        full = self._readers[peer] - of_peer >= MAX_READERS_OF_PEER or self._readers.total() - in_all >= MAX_READERS
        self._readers[peer] += 1
        try:
            await self._serve(caller, stream, full=full)
        except (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.TooSlowError,
            OSError,
            PeerMisbehaved,
        ) as error:
            log.debug("a peer's reading of an image ended", peer=peer, why=str(error))
            stream.reset()
        finally:
            self._readers -= Counter([peer])

    async def _serve(self, caller: Caller, stream: Stream, *, full: bool) -> None:
        with trio.fail_after(OPENING):
            request = await receive_frame(stream, BlobRequest)
        try:
            caller.require(Role.VIEWER, "reading an image")
            if full:
                raise Overloaded("this node sends as many images as it may; try again later", retry_after=5)
            async with open_disk(self._store.repository, request.digest) as disk:
                limit = caller.limits.image_bytes
                if limit is not None and disk.index.data_size > limit:
                    raise QuotaExceeded(f"this node lets you read images of at most {limit} bytes")
                if not request.certificate or not await self._bulk.serve(
                    stream, disk, request.certificate, partial(_offer, stream)
                ):
                    await _answer(stream, disk, request)
        except TwinshareError as error:
            if isinstance(error, PeerMisbehaved):
                raise
            with trio.fail_after(OPENING):
                await stream.send_all(encode(BlobAnswer(error=error.to_wire())))


async def _offer(stream: Stream, offer: BulkOffer) -> None:
    with trio.fail_after(OPENING):
        await stream.send_all(encode(BlobAnswer(bulk=offer)))


async def _answer(stream: Stream, disk: SharedDisk, request: BlobRequest) -> None:
    size = disk.index.encoded_size if request.index else 0
    with trio.fail_after(OPENING):
        await stream.send_all(encode(BlobAnswer(index_size=size)))
    parts = disk.index.parts()
    while size and (part := await trio.to_thread.run_sync(next, parts, None)):
        with trio.fail_after(OPENING * 4):
            await stream.send_all(part)
    await serve_chunks(stream, disk)
