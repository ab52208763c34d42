"""One REST exchange without a socket: a call of the table becomes a request, a response its result or its error.

The asynchronous and the blocking client differ only in how they carry bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

from ..protocols.bodies import body_type
from ..protocols.errors import ErrorBody, InvalidRequest, P2pStopped, PeerUnreachable, TwinshareError
from ..protocols.guest import WrittenFile, text_or_base64
from ..protocols.image import Image
from ..protocols.method import Method, path_part
from ..protocols.operation import Operation
from ..protocols.services import SERVICES
from ..protocols.table import find_method
from ..protocols.vm import Blob

ROOT = "/api"


class NodeUnreachable(TwinshareError):
    """No twinshare node answers at the address; raised on the caller's side alone.

    `reason` is `connect` when no connection was made, `lost` when one broke (the node may have done what it was asked),
    `protocol` when something else than a node of this version answers.
    """

    code = "node_unreachable"

    def __init__(self, message: str, reason: Literal["connect", "lost", "protocol"] = "protocol") -> None:
        super().__init__(message)
        self.reason = reason


class Request(msgspec.Struct, frozen=True):
    """What to send. `target` is the path with its query, `answer` the type of a success's body.

    One that is not `repeatable` is not sent again when its connection is lost: it may have been done.
    """

    verb: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    answer: Any
    mutates: bool
    repeatable: bool = True


def trace_headers(traceparent: str | None) -> dict[str, str]:
    """Return the header that says which trace a request belongs to."""
    return {"traceparent": traceparent} if traceparent else {}


def is_unreachable(error: TwinshareError) -> bool:
    """Return whether an error says that the node, or the peer, cannot be reached."""
    return isinstance(error, NodeUnreachable | PeerUnreachable | P2pStopped)


def below(path: str, peer: str | None) -> str:
    """The path of a route on the node that is asked, or on `peer` through it. Raises: InvalidRequest."""
    return f"{ROOT}{path}" if peer is None else f"{ROOT}/remote/{path_part(peer, 'peer')}{path}"


def method_named(name: str) -> Method:
    """Raises: KeyError when the table has no such operation."""
    method = find_method(SERVICES, name)
    if method is None:
        raise KeyError(name)
    return method


def compose(
    method: Method,
    arguments: Mapping[str, Any],
    peer: str | None = None,
    *,
    idempotency_key: str | None = None,
    detach: bool = False,
) -> Request:
    """The request for one call; a mutation always carries an idempotency key, so that it can be repeated.

    Raises: InvalidRequest when `peer` cannot be asked for this.
    """
    if method.local and peer is not None:
        raise InvalidRequest(f"{method.name} works on the node itself: it takes no peer", path="peer")
    path, query, body = method.request(arguments)
    headers = {"Accept": "*/*" if method.result is Blob else "application/json"}
    if body:
        headers["Content-Type"] = "application/json"
    if method.mutates:
        headers["Idempotency-Key"] = idempotency_key or os.urandom(16).hex()
    if detach:
        headers["Prefer"] = "respond-async"
    return Request(
        verb=method.verb,
        target=below(path, peer) + (f"?{urlencode(query)}" if query else ""),
        headers=headers,
        body=body,
        answer=Operation if detach else body_type(method, remote=peer is not None),
        mutates=method.mutates,
        repeatable=method.journalled or method.verb != "POST",
    )


def list_request(operation: str, peer: str | None = None, **arguments: Any) -> Request:
    """Return the request for a listing of the table."""
    return compose(method_named(operation), arguments, peer)


def plain(verb: str, path: str, answer: Any) -> Request:
    """The request for a route that is no operation of the table and takes nothing."""
    return Request(verb, ROOT + path, {"Accept": "application/json"}, b"", answer, mutates=False)


def with_query(request: Request, query: Mapping[str, Any]) -> Request:
    """Return a request with further parameters; what is None is left out."""
    given = {name: value for name, value in query.items() if value is not None}
    if not given:
        return request
    joint = "&" if "?" in request.target else "?"
    return msgspec.structs.replace(request, target=request.target + joint + urlencode(given, doseq=True))


def upload(name: str, *, raw: bool = False) -> Request:
    """The request that a disk's bytes follow: it becomes the image `name`."""
    query = {"name": name, **({"raw": "true"} if raw else {})}
    return Request(
        verb="POST",
        target=f"{ROOT}/image/import?{urlencode(query)}",
        headers={"Content-Type": "application/octet-stream", "Accept": "application/json"},
        body=b"",
        answer=Image,
        mutates=True,
    )


def guest_path(vm: str, rest: str, peer: str | None) -> str:
    """The path of a route below a VM, such as `/ssh` or `/sessions/ID/attach`."""
    return below(f"/vm/{path_part(vm, 'vm')}{rest}", peer)


def file_read(vm: str, path: bytes, peer: str | None, offset: int = 0, length: int | None = None) -> Request:
    """The request for the content of a file in a guest, or a part of it; its result is a `Blob`."""
    headers = {"Accept": "*/*"}
    if offset or length is not None:
        headers["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
    target = f"{guest_path(vm, '/file', peer)}?{urlencode(_path_query(path))}"
    return Request("GET", target, headers, b"", Blob, mutates=False)


def file_write(vm: str, path: bytes, peer: str | None, options: Mapping[str, Any]) -> Request:
    """The request that a file's bytes follow; `options` are those of the query that are not None."""
    query = _path_query(path) | {name: value for name, value in options.items() if value not in (None, "")}
    return Request(
        verb="PUT",
        target=f"{guest_path(vm, '/file', peer)}?{urlencode(query)}",
        headers={"Content-Type": "application/octet-stream", "Accept": "application/json"},
        body=b"",
        answer=WrittenFile,
        mutates=True,
    )


def _path_query(path: bytes) -> dict[str, Any]:
    text, coded = text_or_base64(path)
    return {"path": text} if coded is None else {"path_base64": coded}


def read(kind: Any, status: int, media_type: str, body: bytes) -> Any:
    """An answer's body. Raises: the error that the node raised; NodeUnreachable if no node of ours wrote this."""
    if status >= 300:
        raise read_error(status, body)
    if kind is Blob:
        return Blob(media_type=media_type, data=body)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NodeUnreachable(f"what answers there is not a twinshare node of this version: {error}") from None


def read_error(status: int, body: bytes) -> TwinshareError:
    """Return the error that a response stands for; of one that a proxy wrote only the status is known."""
    try:
        found = msgspec.json.decode(body, type=ErrorBody)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = ErrorBody(error=f"the answer was HTTP {status}, without a reason", code="")
    return TwinshareError.from_wire(found, status)


def outcome(operation: Operation) -> Any:
    """What an ended operation returned, as its method's own type. Raises: the error that ended it."""
    if operation.error is not None:
        raise TwinshareError.from_wire(operation.error)
    method = find_method(SERVICES, operation.kind)
    return operation.result if method is None else msgspec.convert(operation.result, method.result)
