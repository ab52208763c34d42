"""The documented bodies of REST answers, where they differ from what an operation returns.

A server answers with `present`; a client decodes `body_type` and gets the result back with `restore`; the OpenAPI
document reads the same types. A list answers an object with one key, and beside it `next` when only a part was asked
for and more follow. An action answers the documented keys and, beside them, the whole VM.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec
from msgspec import UNSET, UnsetType

from .image import CatalogueEntry, Image
from .method import Method
from .node import Token
from .operation import Operation
from .peer import MessageReply, P2pState, PeerInfo
from .vm import Forward, Vm, VmStatus


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """A body that carries an operation's `result` in a documented form."""

    @classmethod
    def of(cls, result: Any, peer_id: str) -> Self:
        """The body for `result`, which the peer `peer_id` returned (an empty string: this node itself)."""
        return cls(**{cls.__struct_fields__[0]: result})

    @property
    def result(self) -> Any:
        """What `of` was given."""
        return getattr(self, self.__struct_fields__[0])


class VmList(Body, frozen=True, kw_only=True):
    vms: list[Vm]
    next: str | UnsetType = UNSET


class ForwardList(Body, frozen=True, kw_only=True):
    forwards: list[Forward]


class ImageList(Body, frozen=True, kw_only=True):
    images: list[Image]
    next: str | UnsetType = UNSET


class CatalogueList(Body, frozen=True, kw_only=True):
    entries: list[CatalogueEntry]


class OperationList(Body, frozen=True, kw_only=True):
    operations: list[Operation]
    next: str | UnsetType = UNSET


class TokenList(Body, frozen=True, kw_only=True):
    tokens: list[Token]


class PeerList(Body, frozen=True, kw_only=True):
    peers: list[PeerInfo]
    next: str | UnsetType = UNSET


class MessageAnswer(Body, frozen=True, kw_only=True):
    response: MessageReply


class VmDeleted(Body, frozen=True, kw_only=True):
    """`vm` is the VM as it was last seen."""

    success: bool = True
    name: str
    vm: Vm

    @classmethod
    def of(cls, result: Vm, peer_id: str) -> Self:
        every: dict[str, Any] = {
            "name": result.name,
            "status": result.status,
            "vnc_port": result.vnc_port,
            "vm": result,
        }
        every |= {"peer_id": peer_id, "vm_id": result.id}
        return cls(**{name: every[name] for name in cls.__struct_fields__ if name in every})

    @property
    def result(self) -> Vm:
        return self.vm


class VmChanged(VmDeleted, frozen=True, kw_only=True):
    status: VmStatus


class VmStarted(VmChanged, frozen=True, kw_only=True):
    vnc_port: int | None


class RemoteVmDeleted(VmDeleted, frozen=True, kw_only=True):
    peer_id: str
    vm_id: str


class RemoteVmChanged(RemoteVmDeleted, frozen=True, kw_only=True):
    status: VmStatus


class P2pChanged(Body, frozen=True, kw_only=True):
    success: bool = True
    status: str
    id: str
    address: str
    port: int

    @classmethod
    def of(cls, result: P2pState, peer_id: str) -> Self:
        return cls(**msgspec.structs.asdict(result))

    @property
    def result(self) -> P2pState:
        return P2pState(status=self.status, id=self.id, address=self.address, port=self.port)


def body_type(method: Method, *, remote: bool = False) -> Any:
    """The type of the answer's body: a `Body`, or the operation's own result type."""
    return method.remote_answer if remote else method.answer


def present(method: Method, result: Any, peer_id: str | None = None) -> Any:
    """What REST answers for `result`; `peer_id` is the owner's ID under `/api/remote/<peer>`, else None."""
    kind = body_type(method, remote=peer_id is not None)
    return kind.of(result, peer_id or "") if isinstance(kind, type) and issubclass(kind, Body) else result


def restore(body: Any) -> Any:
    """The other end of `present`: the operation's result out of a decoded body."""
    return body.result if isinstance(body, Body) else body
