"""The parameters of listings as typed keywords, and their rows page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypedDict, TypeVar, Unpack, cast

from msgspec import UNSET

from ..protocols.bodies import ImageList, OperationList, PeerList, VmList
from ..protocols.image import Image
from ..protocols.operation import Operation
from ..protocols.peer import FleetVms, PeerInfo
from ..protocols.vm import Vm
from .exchange import Request, list_request, method_named, plain, with_query

Row_co = TypeVar("Row_co", covariant=True)
PAGE_SIZE = 200


class VmFilters(TypedDict, total=False):
    """Which VMs are listed, and in which order: `*` in a filter stands for any text; `-FIELD` sorts descending.

    `label` holds KEY or KEY=VALUE, all of which a VM must have.
    """

    sort: str
    label: Sequence[str]
    id: str
    name: str
    status: str
    hypervisor: str
    network: str
    ip: str
    guest_ip: str
    mac: str
    image: str
    owner: str
    firmware: str
    node: str
    reason: str


class ImageFilters(TypedDict, total=False):
    """As VmFilters, for images."""

    sort: str
    label: Sequence[str]
    name: str
    tag: str
    digest: str
    manifest: str
    registry: str
    source: str
    owner: str


class OperationFilters(TypedDict, total=False):
    """As VmFilters, for operations: those made by the time `until` (RFC 3339)."""

    sort: str
    state: str
    until: str
    id: str
    kind: str
    target: str
    node: str
    idempotency_key: str
    principal: str


class PeerFilters(TypedDict, total=False):
    """As VmFilters, for peers."""

    sort: str
    id: str
    name: str
    address: str
    status: str
    role: Literal["viewer", "operator", "admin"]
    path: str
    membership: str
    admitted_by: str
    reason: str
    cure: str


class Carrier(Protocol):
    """Sends one request and returns the body of its response."""

    async def send(self, request: Request, content: AsyncIterator[bytes] | None = None) -> Any: ...


def listing(operation: str, query: Mapping[str, Any], peer: str | None = None) -> Request:
    """Return the request for a listing of the table with parameters of listings."""
    taken = method_named(operation).query
    own = {name: query[name] for name in (taken.__struct_fields__ if taken else ()) if name in query}
    others = {name: value for name, value in query.items() if name not in own}
    return with_query(list_request(operation, peer, **own), others)


def fleet_listing(query: Mapping[str, Any]) -> Request:
    """Return the request for the VMs of the fleet with parameters of listings."""
    return with_query(plain("GET", "/fleet/vm", FleetVms), query)


class Rows(Generic[Row_co]):
    """The rows of a listing, fetched page by page as they are read."""

    def __init__(self, carrier: Carrier, request: Request, page_size: int) -> None:
        self._carrier, self._request, self._page_size = carrier, request, page_size
        self._rows: list[Row_co] = []
        self._after: str | None = None
        self._ended = False

    def __aiter__(self) -> Rows[Row_co]:
        return self

    async def __anext__(self) -> Row_co:
        while not self._rows:
            if self._ended:
                raise StopAsyncIteration
            await self._fetch()
        return self._rows.pop()

    async def _fetch(self) -> None:
        asked = with_query(self._request, {"limit": self._page_size, "after": self._after})
        page = await self._carrier.send(asked)
        self._rows = list(reversed(getattr(page, page.__struct_fields__[0])))
        self._after = None if page.next is UNSET else page.next
        self._ended = self._after is None


class ListingCalls:
    """The listings that a client offers, over any carrier: whole, or page by page with `iterate_…`."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier

    async def list_vms(self, **wanted: Unpack[VmFilters]) -> list[Vm]:
        """List the VMs of the node."""
        return cast("VmList", await self._carrier.send(listing("list_vms", wanted))).vms

    async def list_remote_vms(self, peer_id: str, **wanted: Unpack[VmFilters]) -> list[Vm]:
        """List the VMs of a peer."""
        return cast("VmList", await self._carrier.send(listing("list_vms", wanted, peer_id))).vms

    async def list_fleet_vms(self, **wanted: Unpack[VmFilters]) -> list[Vm]:
        """List the VMs of every known peer; `node` and `reachable` tell whose they are and how fresh."""
        return (await self.get_fleet_vms(**wanted)).vms

    async def get_fleet_vms(self, **wanted: Unpack[VmFilters]) -> FleetVms:
        """List the VMs of every known peer, and the peers that could not be asked for theirs."""
        return cast("FleetVms", await self._carrier.send(fleet_listing(wanted)))

    async def list_images(self, peer: str | None = None, **wanted: Unpack[ImageFilters]) -> list[Image]:
        """List the images of the node."""
        return cast("ImageList", await self._carrier.send(listing("list_images", wanted, peer))).images

    async def list_operations(self, peer: str | None = None, **wanted: Unpack[OperationFilters]) -> list[Operation]:
        """List the operations of the node, the newest first."""
        return cast("OperationList", await self._carrier.send(listing("list_operations", wanted, peer))).operations

    async def get_peers(self, **wanted: Unpack[PeerFilters]) -> list[PeerInfo]:
        """List the peers of the fleet."""
        return cast("PeerList", await self._carrier.send(listing("list_peers", wanted))).peers

    def iterate_vms(self, peer: str | None = None, page_size: int = PAGE_SIZE, **wanted: Unpack[VmFilters]) -> Rows[Vm]:
        """List VMs, fetched `page_size` at a time as they are read."""
        return Rows(self._carrier, listing("list_vms", wanted, peer), page_size)

    def iterate_fleet_vms(self, page_size: int = PAGE_SIZE, **wanted: Unpack[VmFilters]) -> Rows[Vm]:
        """List the VMs of the fleet page by page."""
        return Rows(self._carrier, fleet_listing(wanted), page_size)

    def iterate_images(
        self, peer: str | None = None, page_size: int = PAGE_SIZE, **wanted: Unpack[ImageFilters]
    ) -> Rows[Image]:
        """List images page by page."""
        return Rows(self._carrier, listing("list_images", wanted, peer), page_size)

    def iterate_operations(
        self, peer: str | None = None, page_size: int = PAGE_SIZE, **wanted: Unpack[OperationFilters]
    ) -> Rows[Operation]:
        """List operations page by page, the newest first."""
        return Rows(self._carrier, listing("list_operations", wanted, peer), page_size)

    def iterate_peers(self, page_size: int = PAGE_SIZE, **wanted: Unpack[PeerFilters]) -> Rows[PeerInfo]:
        """List peers page by page."""
        return Rows(self._carrier, listing("list_peers", wanted), page_size)
