"""Every error that a peer or a REST client can see, with its code and its HTTP status: docs/reference/errors.md.

The same class is raised on both sides of a stream: `to_wire` on the owner's node, `from_wire` on the caller's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """What an error looks like on every wire: a sentence for people, a code for programs, details for both."""

    error: str
    code: str
    details: dict[str, Any] | None = None


class TwinshareError(Exception):
    """The base of every expected failure; any other exception is a bug."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def to_wire(self) -> ErrorBody:
        return ErrorBody(error=self.message, code=self.code, details=self.details or None)

    @staticmethod
    def from_wire(body: ErrorBody, status: int | None = None) -> TwinshareError:
        """Rebuild the class that the other side raised.

        A code that this version does not know falls back to the class which stands for the HTTP `status`.
        """
        kind = _BY_CODE.get(body.code) or _BY_STATUS.get(status or 0, TwinshareError)
        error = kind(body.error)
        error.details = dict(body.details or {})
        return error


class InvalidRequest(TwinshareError):
    """The caller must change the request; `details.path` names the field."""

    code, status = "invalid_request", 400


class Unauthenticated(TwinshareError):
    """The request has no token, or one that this node does not know, has revoked or has seen expire."""

    code, status = "unauthenticated", 401


class Forbidden(TwinshareError):
    """The caller is known and lacks the role; the message names the role that is needed."""

    code, status = "forbidden", 403


class AddressRefused(Forbidden):
    """The caller names a host inside this node's own network, and the node's configuration does not list it."""

    code = "address_refused"


class QuotaExceeded(Forbidden):
    """The caller owns as many VMs, CPUs, memory or disk as its role or membership allows."""

    code = "quota_exceeded"


class NotFound(TwinshareError):
    """No such route, or nothing of that name."""

    code, status = "not_found", 404


class VmNotFound(NotFound):
    """No VM has this name or ID on the node that is asked."""

    code = "vm_not_found"


class ImageNotFound(NotFound):
    """No image of this name or digest is here, nor where it was to come from."""

    code = "image_not_found"


class PeerNotFound(NotFound):
    """No member of the fleet has this name or peer ID."""

    code = "peer_not_found"


class OperationNotFound(NotFound):
    """The journal has no operation of this ID, or not any more."""

    code = "operation_not_found"


class ForwardNotFound(NotFound):
    """The VM has no forward of this port."""

    code = "forward_not_found"


class TokenNotFound(NotFound):
    """No token has this name."""

    code = "token_not_found"


class SessionNotFound(NotFound):
    """No such session on this VM: it ended more than ten minutes ago, or never was."""

    code = "session_not_found"


class FileNotFound(NotFound):
    """No such file in the guest."""

    code = "file_not_found"


class MethodNotAllowed(TwinshareError):
    """The route has other methods: the header `Allow` names them."""

    code, status = "method_not_allowed", 405


class RequestTimeout(TwinshareError):
    """The caller was too slow to say what it wants."""

    code, status = "request_timeout", 408


class Conflict(TwinshareError):
    """The request does not fit what is there; the message says what."""

    code, status = "conflict", 409


class VmExists(Conflict):
    """Another VM of the node has this name."""

    code = "vm_exists"


class WrongState(Conflict):
    """The VM is in a state in which this cannot be done; the message says which."""

    code = "wrong_state"


class ImageInUse(Conflict):
    """VMs stand on the image; the message names them."""

    code = "image_in_use"


class ImageExists(Conflict):
    """The name stands for another image."""

    code = "image_exists"


class ImageDamaged(Conflict):
    """A file of the image is missing or is not what its digest says."""

    code = "image_damaged"


class PortTaken(Conflict):
    """Another forward or program has this port of the node."""

    code = "port_taken"


class MacTaken(Conflict):
    """Another VM of the node has this MAC address."""

    code = "mac_taken"


class AmbiguousName(Conflict):
    """Several VMs, images or peers may be meant; the message names them."""

    code = "ambiguous_name"


class IdempotencyMismatch(Conflict):
    """The idempotency key was used before, for another request."""

    code = "idempotency_mismatch"


class OperationCancelled(Conflict):
    """The operation was cancelled, and what it had done was undone."""

    code = "operation_cancelled"


class GuestUnreachable(Conflict):
    """The guest cannot be asked: the message says what it lacks and how to add it."""

    code = "guest_unreachable"


class GuestRefused(Conflict):
    """The guest's system refused it, with the reason of the guest's kernel: no permission, no space, not empty."""

    code = "guest_refused"


class TooLarge(TwinshareError):
    """The body, a header or a field is larger than its limit."""

    code, status = "too_large", 413


class RangeNotSatisfiable(TwinshareError):
    """The file has no byte in the range that is asked for."""

    code, status = "range_not_satisfiable", 416


class UnsupportedMediaType(TwinshareError):
    """The body is in another format than the route takes; the message says which."""

    code, status = "unsupported_media_type", 415


class Misdirected(TwinshareError):
    """The Host header names a server that we are not: a sign of DNS rebinding."""

    code, status = "misdirected", 421


class UpgradeRequired(TwinshareError):
    """The route is a websocket, and the request was none."""

    code, status = "upgrade_required", 426


class RateLimited(TwinshareError):
    """The caller has sent more requests than its share: try again later."""

    code, status = "rate_limited", 429


class Unsupported(TwinshareError):
    """The hypervisor or this machine lacks the power that was asked for."""

    code, status = "unsupported", 501


class BadGateway(TwinshareError):
    """Another machine that the answer depends on has failed."""

    code, status = "bad_gateway", 502


class PeerUnreachable(BadGateway):
    """No connection to the peer could be made, or it broke."""

    code = "peer_unreachable"


class PeerMisbehaved(BadGateway):
    """The peer has answered what the protocol does not allow."""

    code = "peer_misbehaved"


class RegistryFailed(BadGateway):
    """A registry or package archive could not be reached, refused, or sent what is not right."""

    code = "registry_failed"


class Unavailable(TwinshareError):
    """The node cannot do this at the moment; the message says why."""

    code, status = "unavailable", 503


class HypervisorDown(Unavailable):
    """The node cannot run VMs at the moment: libvirt or its sandbox is not there."""

    code = "hypervisor_down"


class P2pStopped(Unavailable):
    """The peer-to-peer services of the node are off, or cannot listen."""

    code = "p2p_stopped"


class Overloaded(Unavailable):
    """As many do this at once as may: try again later."""

    code = "overloaded"


class DeadlineExceeded(TwinshareError):
    """It has not ended in the time that it was given."""

    code, status = "deadline_exceeded", 504


class InsufficientResources(TwinshareError):
    """No room on this machine for the VM or the image: memory, CPU or disk."""

    code, status = "insufficient_resources", 507


def _tree(kind: type[TwinshareError]) -> list[type[TwinshareError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _tree(child))]


ALL_ERRORS: tuple[type[TwinshareError], ...] = tuple(_tree(TwinshareError))
_BY_CODE = {kind.code: kind for kind in ALL_ERRORS}
# The first class of each status in tree order is the most general one.
_BY_STATUS = {kind.status: kind for kind in reversed(ALL_ERRORS)}
