"""Every error that a peer or a REST client can see, with its code and its HTTP status.

TwinshareError                  internal                500
├── InvalidRequest              invalid_request         400
├── Unauthenticated             unauthenticated         401
├── Forbidden                   forbidden               403
│   ├── AddressRefused          address_refused         403
│   └── QuotaExceeded           quota_exceeded          403
├── NotFound                    not_found               404
│   ├── VmNotFound              vm_not_found            404
│   ├── ImageNotFound           image_not_found         404
│   ├── PeerNotFound            peer_not_found          404
│   ├── OperationNotFound       operation_not_found     404
│   ├── ForwardNotFound         forward_not_found       404
│   ├── TokenNotFound           token_not_found         404
│   ├── SessionNotFound         session_not_found       404
│   └── FileNotFound            file_not_found          404
├── MethodNotAllowed            method_not_allowed      405
├── RequestTimeout              request_timeout         408
├── Conflict                    conflict                409
│   ├── VmExists                vm_exists               409
│   ├── WrongState              wrong_state             409
│   ├── ImageInUse              image_in_use            409
│   ├── ImageExists             image_exists            409
│   ├── ImageDamaged            image_damaged           409
│   ├── PortTaken               port_taken              409
│   ├── AmbiguousName           ambiguous_name          409
│   ├── IdempotencyMismatch     idempotency_mismatch    409
│   ├── OperationCancelled      operation_cancelled     409
│   ├── GuestUnreachable        guest_unreachable       409
│   └── GuestRefused            guest_refused           409
├── TooLarge                    too_large               413
├── UnsupportedMediaType        unsupported_media_type  415
├── Misdirected                 misdirected             421
├── UpgradeRequired             upgrade_required        426
├── RateLimited                 rate_limited            429
├── Unsupported                 unsupported             501
├── BadGateway                  bad_gateway             502
│   ├── PeerUnreachable         peer_unreachable        502
│   ├── PeerMisbehaved          peer_misbehaved         502
│   └── RegistryFailed          registry_failed         502
├── Unavailable                 unavailable             503
│   ├── HypervisorDown          hypervisor_down         503
│   ├── P2pStopped              p2p_stopped             503
│   └── Overloaded              overloaded              503
├── DeadlineExceeded            deadline_exceeded       504
└── InsufficientResources       insufficient_resources  507

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
    code, status = "unauthenticated", 401


class Forbidden(TwinshareError):
    """The caller is known and lacks the role; the message names the role that is needed."""

    code, status = "forbidden", 403


class AddressRefused(Forbidden):
    """The caller names a host inside this node's own network, and the node's configuration does not list it."""

    code = "address_refused"


class QuotaExceeded(Forbidden):
    code = "quota_exceeded"


class NotFound(TwinshareError):
    code, status = "not_found", 404


class VmNotFound(NotFound):
    code = "vm_not_found"


class ImageNotFound(NotFound):
    code = "image_not_found"


class PeerNotFound(NotFound):
    code = "peer_not_found"


class OperationNotFound(NotFound):
    code = "operation_not_found"


class ForwardNotFound(NotFound):
    code = "forward_not_found"


class TokenNotFound(NotFound):
    code = "token_not_found"


class SessionNotFound(NotFound):
    """No such session on this VM: it ended more than ten minutes ago, or never was."""

    code = "session_not_found"


class FileNotFound(NotFound):
    """No such file in the guest."""

    code = "file_not_found"


class MethodNotAllowed(TwinshareError):
    code, status = "method_not_allowed", 405


class RequestTimeout(TwinshareError):
    """The caller was too slow to say what it wants."""

    code, status = "request_timeout", 408


class Conflict(TwinshareError):
    code, status = "conflict", 409


class VmExists(Conflict):
    code = "vm_exists"


class WrongState(Conflict):
    code = "wrong_state"


class ImageInUse(Conflict):
    code = "image_in_use"


class ImageExists(Conflict):
    code = "image_exists"


class ImageDamaged(Conflict):
    """A file of the image is missing or is not what its digest says."""

    code = "image_damaged"


class PortTaken(Conflict):
    code = "port_taken"


class MacTaken(Conflict):
    code = "mac_taken"


class AmbiguousName(Conflict):
    code = "ambiguous_name"


class IdempotencyMismatch(Conflict):
    """The idempotency key was used before, for another request."""

    code = "idempotency_mismatch"


class OperationCancelled(Conflict):
    code = "operation_cancelled"


class GuestUnreachable(Conflict):
    """The guest cannot be asked: the message says what it lacks and how to add it."""

    code = "guest_unreachable"


class GuestRefused(Conflict):
    """The guest's system refused it, with the reason of the guest's kernel: no permission, no space, not empty."""

    code = "guest_refused"


class TooLarge(TwinshareError):
    code, status = "too_large", 413


class RangeNotSatisfiable(TwinshareError):
    """The file has no byte in the range that is asked for."""

    code, status = "range_not_satisfiable", 416


class UnsupportedMediaType(TwinshareError):
    code, status = "unsupported_media_type", 415


class Misdirected(TwinshareError):
    """The Host header names a server that we are not: a sign of DNS rebinding."""

    code, status = "misdirected", 421


class UpgradeRequired(TwinshareError):
    """The route is a websocket, and the request was none."""

    code, status = "upgrade_required", 426


class RateLimited(TwinshareError):
    code, status = "rate_limited", 429


class Unsupported(TwinshareError):
    """The hypervisor or this machine lacks the power that was asked for."""

    code, status = "unsupported", 501


class BadGateway(TwinshareError):
    code, status = "bad_gateway", 502


class PeerUnreachable(BadGateway):
    code = "peer_unreachable"


class PeerMisbehaved(BadGateway):
    code = "peer_misbehaved"


class RegistryFailed(BadGateway):
    code = "registry_failed"


class Unavailable(TwinshareError):
    code, status = "unavailable", 503


class HypervisorDown(Unavailable):
    code = "hypervisor_down"


class P2pStopped(Unavailable):
    code = "p2p_stopped"


class Overloaded(Unavailable):
    code = "overloaded"


class DeadlineExceeded(TwinshareError):
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
