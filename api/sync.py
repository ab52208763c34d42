"""`RESTClient` for programs without an event loop: the same methods, blocking."""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from .blocking_client import MUTATION_TIMEOUT, READ_TIMEOUT, ApiClient
from .calls import Calls
from .exchange import NodeUnreachable, Request

__all__ = ["NodeUnreachable", "RESTClient"]

P = ParamSpec("P")
T = TypeVar("T")


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits nothing but `_Carrier`, and so never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise RuntimeError("a blocking call was suspended")


def _blocking_iterator(rows: AsyncIterator[T]) -> Iterator[T]:
    while True:
        try:
            yield _run(cast("Coroutine[Any, Any, T]", rows.__anext__()))
        except StopAsyncIteration:
            return


class _Carrier:
    """Sends for the asynchronous methods, and blocks."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def send(self, request: Request, content: AsyncIterator[bytes] | None = None) -> Any:
        return self._client.send(request, None if content is None else _blocking_iterator(content))


def _blocking(
    method: Callable[Concatenate[Calls, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[RESTClient, P], T]:
    @functools.wraps(method)
    def call(self: RESTClient, /, *arguments: P.args, **options: P.kwargs) -> T:
        return _run(method(self._calls, *arguments, **options))

    return call


def _iterating(
    method: Callable[Concatenate[Calls, P], AsyncIterator[T]],
) -> Callable[Concatenate[RESTClient, P], Iterator[T]]:
    @functools.wraps(method)
    def call(self: RESTClient, /, *arguments: P.args, **options: P.kwargs) -> Iterator[T]:
        return _blocking_iterator(method(self._calls, *arguments, **options))

    return call


class RESTClient:
    """A blocking client of one node; use it with `with`. One request at a time: a thread needs a client of its own.

    The arguments, the retries and the errors are those of `twinshare.api.rest_client.RESTClient`; `call` reaches every
    operation of the table. Events, consoles and attached sessions are streams and need the asynchronous client.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8080",
        token: str | None = None,
        timeout: float = READ_TIMEOUT,
        *,
        mutation_timeout: float = MUTATION_TIMEOUT,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self._client = ApiClient(base_url, token, timeout, mutation_timeout, verify=verify)
        self._calls = Calls(_Carrier(self._client))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def traceparent(self) -> str | None:
        """What goes along with each request (W3C Trace Context): it is in the nodes' logs, operations and events."""
        return self._client.traceparent

    @traceparent.setter
    def traceparent(self, value: str | None) -> None:
        self._client.traceparent = value

    def close(self) -> None:
        self._client.close()

    call = _blocking(Calls.call)
    begin = _blocking(Calls.begin)
    wait = _blocking(Calls.wait)
    import_image = _blocking(Calls.import_image)
    exec_vm = _blocking(Calls.exec_vm)
    list_files = _blocking(Calls.list_files)
    read_file = _blocking(Calls.read_file)
    write_file = _blocking(Calls.write_file)
    list_fleet_vms = _blocking(Calls.list_fleet_vms)
    get_fleet_vms = _blocking(Calls.get_fleet_vms)
    list_vms = _blocking(Calls.list_vms)
    list_images = _blocking(Calls.list_images)
    list_operations = _blocking(Calls.list_operations)
    iterate_vms = _iterating(Calls.iterate_vms)
    iterate_fleet_vms = _iterating(Calls.iterate_fleet_vms)
    iterate_images = _iterating(Calls.iterate_images)
    iterate_operations = _iterating(Calls.iterate_operations)
    iterate_peers = _iterating(Calls.iterate_peers)
    create_vm = _blocking(Calls.create_vm)
    get_vm_status = _blocking(Calls.get_vm_status)
    start_vm = _blocking(Calls.start_vm)
    stop_vm = _blocking(Calls.stop_vm)
    delete_vm = _blocking(Calls.delete_vm)
    get_local_peer_info = _blocking(Calls.get_local_peer_info)
    get_peers = _blocking(Calls.get_peers)
    start_p2p_services = _blocking(Calls.start_p2p_services)
    stop_p2p_services = _blocking(Calls.stop_p2p_services)
    send_message = _blocking(Calls.send_message)
    list_remote_vms = _blocking(Calls.list_remote_vms)
    create_remote_vm = _blocking(Calls.create_remote_vm)
    start_remote_vm = _blocking(Calls.start_remote_vm)
    stop_remote_vm = _blocking(Calls.stop_remote_vm)
    delete_remote_vm = _blocking(Calls.delete_remote_vm)
