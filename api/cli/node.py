"""Which node the command line talks to, with which token, and the client of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from ...protocols.bodies import VmList, restore
from ...protocols.errors import (
    AmbiguousName,
    ImageNotFound,
    InvalidRequest,
    NotFound,
    PeerNotFound,
    TokenNotFound,
    TwinshareError,
    VmNotFound,
)
from ...protocols.operation import Operation
from ...protocols.vm import Vm
from ..blocking_client import ApiClient
from ..exchange import NodeUnreachable, Request, compose, method_named, plain
from .output import say

SERVICE_DATA_DIR = Path("/var/lib/twinshare")
Result = TypeVar("Result")

# For each kind of thing: the argument that names it, and the operation that lists what there is.
_LISTINGS: dict[type[NotFound], tuple[str, str]] = {
    VmNotFound: ("vm", "list_vms"),
    ImageNotFound: ("image", "list_images"),
    PeerNotFound: ("peer", "list_peers"),
    TokenNotFound: ("name", "list_tokens"),
}


class RunningAgent(msgspec.Struct, frozen=True):
    """What a running agent writes about itself into `agent.json`."""

    pid: int
    name: str
    api_url: str
    version: str = ""
    data_dir: str = ""
    peer_id: str = ""
    addresses: list[str] = []


class NodeAddress(msgspec.Struct, frozen=True):
    """A node's URL, and the token for it."""

    url: str
    token: str | None


def data_dirs() -> list[Path]:
    """Return where nodes of this machine keep their files; the one that is named is the only one."""
    if chosen := os.environ.get("TWINSHARE_DATA_DIR"):
        return [Path(chosen)]
    from ...agent.config import ConfigError, default_data_dir, load_config

    try:
        configured = load_config().node.data_dir
    except ConfigError:
        configured = ""
    return [Path(configured)] if configured else [default_data_dir(), SERVICE_DATA_DIR]


def read_running_agent(data_dir: Path) -> RunningAgent | None:
    """Return the agent that runs on `data_dir`; the file of one that was killed does not count."""
    try:
        agent = msgspec.json.decode((data_dir / "agent.json").read_bytes(), type=RunningAgent)
        os.kill(agent.pid, 0)
    except PermissionError as error:
        # A process of another user is there all the same; an unreadable file is no node of ours.
        return None if error.filename else agent
    except (OSError, msgspec.MsgspecError):
        return None
    return agent


def find_node() -> NodeAddress:
    """Raises: NodeUnreachable when no node runs here; InvalidRequest when it is not clear which one is meant."""
    token = os.environ.get("TWINSHARE_TOKEN")
    if url := os.environ.get("TWINSHARE_API"):
        return NodeAddress(url, token)
    dirs = data_dirs()
    running = [(path, agent) for path in dirs if (agent := read_running_agent(path)) is not None]
    if not running:
        looked = " and ".join(map(str, dirs))
        raise NodeUnreachable(
            f"no node is running here (looked in {looked}); start one with 'twinshare agent', or name one by its URL "
            "in $TWINSHARE_API"
        )
    if len(running) > 1:
        found = ", ".join(f"{agent.name} ({path})" for path, agent in running)
        raise InvalidRequest(f"several nodes run here: {found}; choose one with $TWINSHARE_DATA_DIR")
    path, agent = running[0]
    return NodeAddress(agent.api_url, token or _read_token(path))


def _read_token(data_dir: Path) -> str | None:
    try:
        return (data_dir / "admin.token").read_text().strip()
    except OSError:
        return None


class NodeClient(ApiClient):
    """Calls operations by name. A VM is found in the fleet, and a name that nobody has gets the nearest one."""

    def __init__(self, base_url: str, token: str | None) -> None:
        super().__init__(base_url, token)
        self.traceparent = os.environ.get("TRACEPARENT")
        self._located: dict[str, tuple[str, str]] = {}

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, peer: str | None = None) -> Any:
        """Call an operation of the table and return its result. Raises: what RESTClient raises."""
        method = method_named(name)
        return self._found(lambda given, at: restore(self.send(compose(method, given, at))), arguments or {}, peer)

    def fetch(self, request: Request, peer: str | None = None) -> Any:
        """Send a request to the node, or through it to a peer. Raises: what the node raises."""
        try:
            return self.send(request)
        except NotFound as error:
            raise self._with_suggestion(error, {}, peer) from None

    def begin(self, name: str, arguments: Mapping[str, Any], peer: str | None = None) -> tuple[Operation, str | None]:
        """Start a mutation; return its operation at once, and the peer that does it."""
        method = method_named(name)
        return self._found(
            lambda given, at: (cast("Operation", self.send(compose(method, given, at, detach=True))), at),
            arguments,
            peer,
        )

    def fleet_vms(self) -> list[Vm]:
        """Return the VMs of all nodes; of one that is away, those it listed last. Raises: what the node raises."""
        found: VmList = self.send(plain("GET", "/fleet/vm", VmList))
        return found.vms

    def locate(self, vm: str, peer: str | None) -> tuple[str, str | None]:
        """Return the name and the peer that a VM's reference stands for: NAME@NODE, or what was found before."""
        if peer is None and vm in self._located:
            return self._located[vm]
        name, at, node = vm.partition("@")
        if not at:
            return vm, peer
        if peer is not None and peer != node:
            raise InvalidRequest(f"'{vm}' names its node already; leave out --on {peer}", path="vm")
        return name, node

    def _found(
        self,
        call: Callable[[Mapping[str, Any], str | None], Result],
        arguments: Mapping[str, Any],
        peer: str | None,
    ) -> Result:
        vm = arguments.get("vm")
        if isinstance(vm, str):
            name, at = self.locate(vm, peer)
            try:
                return call({**arguments, "vm": name}, at)
            except VmNotFound as error:
                if at is not None or not self._find_in_fleet(vm):
                    raise self._with_suggestion(error, {"vm": name}, at) from None
                return self._found(call, arguments, peer)
            except NotFound as error:
                raise self._with_suggestion(error, arguments, at) from None
        try:
            return call(arguments, peer)
        except NotFound as error:
            raise self._with_suggestion(error, arguments, peer) from None

    def _find_in_fleet(self, vm: str) -> bool:
        """Find the node of a VM that this node does not have. Raises: AmbiguousName when several have one."""
        try:
            nodes = [row.node for row in self.fleet_vms() if row.node and vm in {row.name, row.id}]
        except TwinshareError:
            return False
        if len(nodes) > 1:
            choices = " or ".join(f"{vm}@{node}" for node in nodes)
            raise AmbiguousName(f"several nodes have a VM '{vm}'; say which: {choices}")
        if nodes:
            say(f"VM '{vm}' is on node '{nodes[0]}'")
            self._located[vm] = (vm, nodes[0])
        return bool(nodes)

    def _with_suggestion(self, error: NotFound, arguments: Mapping[str, Any], peer: str | None) -> NotFound:
        """Return the same error with the nearest names that there are."""
        argument, listing = _LISTINGS.get(type(error), ("", ""))
        asked = peer if argument == "peer" and peer is not None else arguments.get(argument)
        spec = arguments.get("spec")
        if argument == "image" and spec is not None:
            asked = spec.image
        if not isinstance(asked, str):
            return error
        try:
            names = [found.name for found in self.call(listing, {}, None if argument in {"peer", "name"} else peer)]
        except TwinshareError:
            return error
        from difflib import get_close_matches

        near = [f"'{name}'" for name in get_close_matches(asked, names) if name != asked]
        if not near:
            return error
        hinted = type(error)(f"{error.message}; did you mean {' or '.join(near)}?")
        hinted.details = error.details
        return hinted


def connect() -> NodeClient:
    """Return a client of the node that the environment or a data directory names, which the caller closes.

    Raises: NodeUnreachable, InvalidRequest.
    """
    node = find_node()
    return NodeClient(node.url, node.token)


@contextmanager
def open_client() -> Iterator[NodeClient]:
    """Open a client of the node that the environment or a data directory names.

    Raises: NodeUnreachable, InvalidRequest.
    """
    with connect() as client:
        yield client
