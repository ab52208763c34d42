"""Every operation of a node, once. REST, the peer protocol, the client, the command line and OpenAPI come from here.

Adding an operation is a method here and its class in the agent (docs/how-to-change.md).
A parameter that the path names is taken from the path; of the others, a GET takes its parameters from the query and
every other verb from the JSON body (a single Struct parameter is the body).
"""

from __future__ import annotations

from typing import Annotated, Protocol

from msgspec import Meta

from .access import Amount, Role
from .bodies import (
    ForwardList,
    OperationList,
    RemoteVmChanged,
    RemoteVmDeleted,
    TokenList,
    VmChanged,
    VmDeleted,
    VmList,
    VmStarted,
)
from .guest_service import GuestService
from .image_service import ImageService
from .node import Account, Capacity, Health, Token, TokenRequest
from .operation import MAX_LISTED, Instant, Operation, OperationId, OperationState
from .peer_service import PeerService
from .routes import rest
from .vm import (
    Blob,
    ConsoleLog,
    Forward,
    ForwardSpec,
    Vm,
    VmAddresses,
    VmChange,
    VmRef,
    VmSpec,
    VmStats,
)

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[int, Meta(ge=1, le=3600)]


class VmService(Protocol):
    """The VMs of one node. `vm` is a name or an id, as libvirt looks up both."""

    @rest("GET", "/vm", Role.VIEWER, answer=VmList, cached_rows=True)
    async def list_vms(self) -> list[Vm]:
        """List the VMs of the node."""
        ...

    @rest(
        "POST",
        "/vm",
        Role.OPERATOR,
        remote_answer=RemoteVmChanged,
        example={"name": "new-vm", "image": "ubuntu-20.04", "cpu_cores": 2, "memory": 2048, "disk_size": 20},
    )
    async def create_vm(self, spec: VmSpec) -> Vm:
        """Create a VM from an image, and start it when asked to.

        Raises: VmExists, ImageNotFound, InsufficientResources, Unsupported, HypervisorDown.
        """
        ...

    @rest("GET", "/vm/<vm>", Role.VIEWER)
    async def get_vm(self, vm: VmRef) -> Vm:
        """Show one VM."""
        ...

    @rest("PATCH", "/vm/<vm>", Role.OPERATOR)
    async def update_vm(self, vm: VmRef, change: VmChange) -> Vm:
        """Change a VM's autostart, labels or time to live: `ttl` seconds from now, 0 for no end."""
        ...

    @rest("POST", "/vm/<vm>/start", Role.OPERATOR, answer=VmStarted, remote_answer=RemoteVmChanged)
    async def start_vm(self, vm: VmRef) -> Vm:
        """Start a VM, or resume it if it is paused; one that runs stays as it is."""
        ...

    @rest(
        "POST",
        "/vm/<vm>/stop",
        Role.OPERATOR,
        answer=VmChanged,
        remote_answer=RemoteVmChanged,
        example={"force": False},
    )
    async def stop_vm(self, vm: VmRef, force: bool = False, timeout: Seconds | None = None) -> Vm:
        """Shut a VM down: by the guest agent, else by ACPI; `force` powers it off.

        Raises: DeadlineExceeded when the guest does not stop in `timeout` seconds.
        """
        ...

    @rest("POST", "/vm/<vm>/restart", Role.OPERATOR, answer=VmStarted, remote_answer=RemoteVmChanged)
    async def restart_vm(self, vm: VmRef, force: bool = False, timeout: Seconds | None = None) -> Vm:
        """Stop a VM as `stop` does, then start it."""
        ...

    @rest("POST", "/vm/<vm>/pause", Role.OPERATOR, answer=VmChanged, remote_answer=RemoteVmChanged)
    async def pause_vm(self, vm: VmRef) -> Vm:
        """Pause a VM."""
        ...

    @rest("POST", "/vm/<vm>/resume", Role.OPERATOR, answer=VmStarted, remote_answer=RemoteVmChanged)
    async def resume_vm(self, vm: VmRef) -> Vm:
        """Resume a paused VM."""
        ...

    @rest(
        "DELETE",
        "/vm/<vm>",
        Role.OPERATOR,
        answer=VmDeleted,
        remote_answer=RemoteVmDeleted,
        example={"delete_disk": True},
    )
    async def delete_vm(self, vm: VmRef, delete_disk: bool = True, force: bool = False) -> Vm:
        """Delete a VM, and its disk unless `delete_disk` is false. A running VM is refused without `force`.

        Raises: WrongState.
        """
        ...

    @rest("GET", "/vm/<vm>/ip", Role.VIEWER)
    async def vm_ip(self, vm: VmRef) -> VmAddresses:
        """Show the guest's addresses."""
        ...

    @rest("GET", "/vm/<vm>/stats", Role.VIEWER)
    async def vm_stats(self, vm: VmRef) -> VmStats:
        """Show the resource usage of a running VM. Raises: WrongState."""
        ...

    @rest("GET", "/vm/<vm>/log", Role.VIEWER)
    async def vm_log(
        self, vm: VmRef, offset: Amount | None = None, limit: Annotated[int, Meta(ge=1, le=262144)] = 65536
    ) -> ConsoleLog:
        """Read the serial console's log: its last `limit` bytes, or the ones from `offset`."""
        ...

    @rest("GET", "/vm/<vm>/screenshot", Role.VIEWER)
    async def vm_screenshot(self, vm: VmRef) -> Blob:
        """Take a picture of a running VM's screen. Raises: WrongState, Unsupported."""
        ...

    @rest("GET", "/vm/<vm>/port-forward", Role.VIEWER, answer=ForwardList, by_asked_node=True)
    async def list_forwards(self, vm: VmRef) -> list[Forward]:
        """List the ports forwarded to a VM: of its node, or through a peer those of the node that is asked."""
        ...

    @rest(
        "POST",
        "/vm/<vm>/port-forward",
        Role.OPERATOR,
        by_asked_node=True,
        example={"host_port": 8081, "guest_port": 80},
    )
    async def add_forward(self, vm: VmRef, forward: ForwardSpec) -> Forward:
        """Forward a port of the node to the guest, now and whenever it runs; through a peer a port of the node asked.

        Raises: PortTaken.
        """
        ...

    @rest("DELETE", "/vm/<vm>/port-forward/<host_port>", Role.OPERATOR, by_asked_node=True)
    async def remove_forward(self, vm: VmRef, host_port: Port) -> Forward:
        """End a port forward. Raises: ForwardNotFound."""
        ...


class OperationService(Protocol):
    """The journal of one node."""

    @rest("GET", "/operations", Role.VIEWER, answer=OperationList, newest=MAX_LISTED, cached_rows=True)
    async def list_operations(
        self, state: OperationState | None = None, until: Instant | None = None
    ) -> list[Operation]:
        """List operations, newest first: a thousand, or a thousand of those made by the time `until`."""
        ...

    @rest("GET", "/operations/<id>", Role.VIEWER)
    async def get_operation(self, id: OperationId) -> Operation:
        """Show one operation."""
        ...

    @rest("GET", "/operations/<id>/wait", Role.VIEWER)
    async def wait_operation(self, id: OperationId, timeout: Annotated[float, Meta(ge=0, le=600)] = 60) -> Operation:
        """Wait until an operation ends, or for `timeout` seconds; return it as it is then."""
        ...

    @rest("DELETE", "/operations/<id>", Role.OPERATOR, journalled=False)
    async def cancel_operation(self, id: OperationId) -> Operation:
        """Cancel an operation: what it did is undone. One that has ended stays as it is."""
        ...


class NodeService(Protocol):
    """The node itself."""

    @rest("GET", "/health", Role.VIEWER)
    async def health(self) -> Health:
        """Show node health."""
        ...

    @rest("GET", "/whoami", Role.VIEWER, local=True)
    async def whoami(self) -> Account:
        """Show the account that asks, and its role."""
        ...

    @rest("GET", "/capacity", Role.VIEWER)
    async def capacity(self) -> Capacity:
        """Show free capacity."""
        ...


class TokenService(Protocol):
    """The bearer tokens of the node that is asked; no peer can reach them."""

    @rest("GET", "/tokens", Role.ADMIN, local=True, answer=TokenList)
    async def list_tokens(self) -> list[Token]:
        """List tokens, without their secrets."""
        ...

    @rest(
        "POST",
        "/tokens",
        Role.ADMIN,
        local=True,
        journalled=False,
        example={"name": "ci", "role": "operator", "expires_in": 86400},
    )
    async def create_token(self, token: TokenRequest) -> Token:
        """Make a token; its secret is shown this once."""
        ...

    @rest("DELETE", "/tokens/<name>", Role.ADMIN, local=True, journalled=False)
    async def revoke_token(self, name: Annotated[str, Meta(min_length=1, max_length=64)]) -> Token:
        """Revoke a token at once."""
        ...


SERVICES: tuple[type, ...] = (
    VmService,
    GuestService,
    ImageService,
    OperationService,
    NodeService,
    TokenService,
    PeerService,
)
