"""The calls of a node that a client offers, over any carrier: every operation of the table, and the guide's methods."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

import msgspec

from ..protocols.bodies import RemoteVmChanged, RemoteVmDeleted, VmChanged, VmDeleted, VmStarted, restore
from ..protocols.errors import DeadlineExceeded, PeerMisbehaved
from ..protocols.guest import ExecRequest, ExecResult, FileEntry, WrittenFile
from ..protocols.guest_service import GuestService
from ..protocols.image import Image
from ..protocols.image_service import ImageService
from ..protocols.method import Method
from ..protocols.operation import Operation
from ..protocols.peer import Message, MessageReply, P2pState, PeerInfo
from ..protocols.peer_service import PeerService
from ..protocols.reading import decode_json
from ..protocols.services import NodeService, OperationService, TokenService, VmService
from ..protocols.table import stub
from ..protocols.vm import Blob, Vm, VmSpec
from .call_fields import ExecFields, VmFields, WriteFields
from .content import Hashed, file_parts, packed_parts, single_part
from .exchange import compose, file_read, file_write, method_named, outcome, upload
from .listings import ListingCalls

# Seconds of one request of a wait: less than every timeout on the way.
_WAIT_STEP = 10.0


class Calls(ListingCalls):
    """The calls that a client offers, over any carrier."""

    # Any operation of the table

    async def call(
        self,
        method: Method | str,
        arguments: Mapping[str, Any] | None = None,
        peer: str | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Any:
        """Call one operation on the node, or on `peer` through it, and return what the operation returns."""
        return restore(await self._body(method, arguments or {}, peer, idempotency_key))

    async def begin(
        self,
        method: Method | str,
        arguments: Mapping[str, Any] | None = None,
        peer: str | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Operation:
        """Start a mutation and return its operation at once; `wait` gives its result."""
        found = method_named(method) if isinstance(method, str) else method
        request = compose(found, arguments or {}, peer, idempotency_key=idempotency_key, detach=True)
        return cast("Operation", await self._carrier.send(request))

    async def wait(self, operation: Operation | str, peer: str | None = None, timeout: float | None = None) -> Any:
        """Wait until an operation ends and return its result; None waits as long as it takes.

        Raises: the error that ended the operation; DeadlineExceeded after `timeout` seconds.
        """
        known = operation if isinstance(operation, str) else operation.id
        left = timeout
        while True:
            step = _WAIT_STEP if left is None else min(left, _WAIT_STEP)
            found = await self.operations(peer).wait_operation(known, timeout=step)
            if found.state.ended:
                return outcome(found)
            left = None if left is None else left - step
            if left is not None and left <= 0:
                raise DeadlineExceeded(f"operation {known} goes on after {timeout} s", operation=known)

    def vms(self, peer: str | None = None) -> VmService:
        return cast("VmService", stub(VmService, partial(self.call, peer=peer)))

    def images(self, peer: str | None = None) -> ImageService:
        return cast("ImageService", stub(ImageService, partial(self.call, peer=peer)))

    def guests(self, peer: str | None = None) -> GuestService:
        return cast("GuestService", stub(GuestService, partial(self.call, peer=peer)))

    def operations(self, peer: str | None = None) -> OperationService:
        return cast("OperationService", stub(OperationService, partial(self.call, peer=peer)))

    def node(self, peer: str | None = None) -> NodeService:
        return cast("NodeService", stub(NodeService, partial(self.call, peer=peer)))

    def tokens(self) -> TokenService:
        return cast("TokenService", stub(TokenService, self.call))

    def peers(self) -> PeerService:
        return cast("PeerService", stub(PeerService, self.call))

    async def import_image(self, name: str, content: Path | AsyncIterator[bytes], *, raw: bool = False) -> Image:
        """Send a qcow2 or raw disk to the node as the image `name` (`name` or `name:tag`).

        `raw` takes what cannot be recognised as a disk for a raw one.
        """
        sent = packed_parts(content) if isinstance(content, Path) else content
        return cast("Image", await self._carrier.send(upload(name, raw=raw), sent))

    # Inside a guest

    async def exec_vm(
        self, vm: str, command: Sequence[str], peer: str | None = None, **fields: Unpack[ExecFields]
    ) -> ExecResult:
        """Run a command in a guest and return what it wrote and its exit code; the other fields are ExecRequest's."""
        given = {"command": list(command), **fields}
        request = cast("ExecRequest", decode_json(msgspec.json.encode(given), ExecRequest))
        return await self.guests(peer).exec_vm(vm, request)

    async def list_files(self, vm: str, path: str, peer: str | None = None) -> list[FileEntry]:
        """List a directory in a guest, all pages of it."""
        found: list[FileEntry] = []
        after: str | None = None
        while True:
            page = await self.guests(peer).list_files(vm, path, after=after)
            found += page.files
            if (after := page.next) is None:
                return found

    async def read_file(
        self, vm: str, path: str | bytes, peer: str | None = None, *, offset: int = 0, length: int | None = None
    ) -> bytes:
        """Read a file in a guest, or `length` bytes of it from `offset` on."""
        asked = file_read(vm, os.fsencode(path), peer, offset, length)
        return cast("Blob", await self._carrier.send(asked)).data

    async def write_file(
        self,
        vm: str,
        path: str | bytes,
        content: bytes | Path | AsyncIterator[bytes],
        peer: str | None = None,
        **options: Unpack[WriteFields],
    ) -> FileEntry:
        """Write a file in a guest: it takes the place of the path's when all of it is there.

        Raises: PeerMisbehaved when the guest has got other bytes than were sent.
        """
        body = Hashed(single_part(content) if isinstance(content, bytes) else
                       file_parts(content) if isinstance(content, Path) else content)  # fmt: skip
        answer = await self._carrier.send(file_write(vm, os.fsencode(path), peer, options), body)
        written = cast("WrittenFile", answer)
        if written.file is None or written.digest not in {None, body.digest}:
            raise PeerMisbehaved(f"the guest has got other bytes than were sent to {os.fsdecode(path)}")
        return written.file

    # The guide: local VMs

    async def create_vm(self, name: str, image: str, **fields: Unpack[VmFields]) -> Vm:
        """Create a VM and return it when it is there. Raises: InvalidRequest naming a field that is wrong."""
        return await self.vms().create_vm(_spec(name, image, fields))

    async def get_vm_status(self, name: str) -> Vm:
        return await self.vms().get_vm(name)

    async def start_vm(self, name: str) -> VmStarted:
        return cast("VmStarted", await self._body("start_vm", {"vm": name}))

    async def stop_vm(self, name: str, force: bool = False) -> VmChanged:
        return cast("VmChanged", await self._body("stop_vm", {"vm": name, "force": force}))

    async def delete_vm(self, name: str, delete_disk: bool = True, force: bool = False) -> VmDeleted:
        arguments = {"vm": name, "delete_disk": delete_disk, "force": force}
        return cast("VmDeleted", await self._body("delete_vm", arguments))

    # The guide: the mesh

    async def get_local_peer_info(self) -> PeerInfo:
        return await self.peers().p2p_info()

    async def start_p2p_services(self) -> P2pState:
        return await self.peers().start_p2p()

    async def stop_p2p_services(self) -> P2pState:
        return await self.peers().stop_p2p()

    async def send_message(self, peer_id: str, message_type: str, data: dict[str, Any]) -> MessageReply:
        return await self.peers().send_message(Message(peer_id=peer_id, message_type=message_type, data=data))

    # The guide: VMs of a peer

    async def create_remote_vm(
        self, peer_id: str, name: str, image: str, **fields: Unpack[VmFields]
    ) -> RemoteVmChanged:
        arguments = {"spec": _spec(name, image, fields)}
        return cast("RemoteVmChanged", await self._body("create_vm", arguments, peer_id))

    async def start_remote_vm(self, peer_id: str, vm_id: str) -> RemoteVmChanged:
        return cast("RemoteVmChanged", await self._body("start_vm", {"vm": vm_id}, peer_id))

    async def stop_remote_vm(self, peer_id: str, vm_id: str, force: bool = False) -> RemoteVmChanged:
        return cast("RemoteVmChanged", await self._body("stop_vm", {"vm": vm_id, "force": force}, peer_id))

    async def delete_remote_vm(
        self, peer_id: str, vm_id: str, delete_disk: bool = True, force: bool = False
    ) -> RemoteVmDeleted:
        arguments = {"vm": vm_id, "delete_disk": delete_disk, "force": force}
        return cast("RemoteVmDeleted", await self._body("delete_vm", arguments, peer_id))

    async def _body(
        self,
        method: Method | str,
        arguments: Mapping[str, Any],
        peer: str | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        found = method_named(method) if isinstance(method, str) else method
        return await self._carrier.send(compose(found, arguments, peer, idempotency_key=idempotency_key))


def _spec(name: str, image: str, fields: Mapping[str, Any]) -> VmSpec:
    """A spec, checked here as the node checks it. Raises: InvalidRequest naming the field."""
    found = decode_json(msgspec.json.encode({"name": name, "image": image, **fields}), VmSpec)
    return cast("VmSpec", found)
