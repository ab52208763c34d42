"""The tools, made of the operation table: names, schemas, arguments. No SDK here.

A tool has the arguments of its operation, and `on` for a peer that is to do it. Who may not call an operation does not
see its tool; the node decides again when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ...protocols.access import Role
from ...protocols.errors import InvalidRequest
from ...protocols.method import Method
from ...protocols.peer_service import PeerService
from ...protocols.reading import decode_json
from ...protocols.services import SERVICES, TokenService
from ...protocols.table import methods
from ...protocols.vm import Blob
from .file_tools import FileTools

PEER = "on"
_SERVICES = [service for service in SERVICES if service not in (TokenService, PeerService)]
_PEERS = ("p2p_info", "list_peers", "get_peer", "ping_peer")
"""Of the mesh: what a node's own users may look at. Nothing that changes the fleet or hands out rights."""
_PEER_SCHEMA = {"type": "string", "description": "The peer whose node does it: a name or an ID; this node without it."}


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `schema` is the JSON schema of its arguments."""

    method: Method
    description: str
    schema: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def destructive(self) -> bool:
        """Whether it takes something away: a client may ask its user before."""
        return self.method.verb == "DELETE" or self.name in {"stop_vm", "restart_vm", "prune_images", "signal_session"}

    def read(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Return the operation's arguments and the peer. Raises: InvalidRequest naming what is wrong."""
        given = dict(arguments)
        peer = given.pop(PEER, None)
        if peer is not None and (self.method.local or not isinstance(peer, str)):
            raise InvalidRequest(f"{self.name} is done by the node itself: leave out '{PEER}'", path=PEER)
        known = self.method.args.__struct_fields__
        if unknown := sorted(set(given) - set(known)):
            raise InvalidRequest(f"unknown argument '{unknown[0]}'; there are: {', '.join(known)}", path=unknown[0])
        decoded = decode_json(msgspec.json.encode(given), self.method.args)
        return {name: getattr(decoded, name) for name in known}, peer


def make_tools() -> Mapping[str, Tool]:
    """Return all tools by name, in the order of the table."""
    listed = [method for service in _SERVICES for method in methods(service).values() if method.verb != "PEER"]
    listed += methods(FileTools).values()
    listed += [methods(PeerService)[name] for name in _PEERS]
    return {method.name: _tool(method) for method in listed if method.result is not Blob}


def visible(tools: Iterable[Tool], role: Role) -> Sequence[Tool]:
    """Return the tools that a role may call."""
    return [tool for tool in tools if role.includes(tool.method.role)]


def _tool(method: Method) -> Tool:
    [reference], components = msgspec.json.schema_components([method.args], ref_template="#/$defs/{name}")
    root = components.pop(reference["$ref"].rpartition("/")[2])
    properties = dict(root.get("properties", {}))
    if not method.local:
        properties[PEER] = _PEER_SCHEMA
    schema = {"type": "object", "properties": properties, "required": root.get("required", [])}
    schema |= {"additionalProperties": False, **({"$defs": components} if components else {})}
    return Tool(method, method.summary, schema)
