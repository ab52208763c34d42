"""A websocket of the API and a stream of a VM, as one connection: consoles, screens, sessions and ports of guests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio

from ...protocols.console import HEARTBEAT, SILENCE
from ...protocols.errors import InvalidRequest, RequestTimeout, TwinshareError
from ..rest.requests import RestWebsocket


class WebsocketRelay(ABC):
    """Carries messages both ways, and watches whether the client still answers."""

    def __init__(self, websocket: RestWebsocket) -> None:
        self.websocket = websocket
        self._error: TwinshareError | None = None
        self._sending = False

    @abstractmethod
    async def relay_output(self) -> None:
        """Send what comes from the VM; return at its end. Raises: why it ended."""

    @abstractmethod
    async def take(self, message: str | bytes) -> None:
        """Give the VM what the client sent; it waits while the guest does not read."""

    async def run(self) -> None:
        """Relay until either side ends it. Raises: why it ended."""
        async with trio.open_nursery() as nursery:
            for part in (self.relay_output, self._relay_input, self._watch_client):
                nursery.start_soon(self._until_it_ends, part, nursery.cancel_scope)
        if self._error is not None:
            raise self._error

    async def _until_it_ends(self, part: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        """No domain error leaves this task."""
        try:
            await part()
        except TwinshareError as error:
            self._error = self._error or error
        scope.cancel()

    async def _relay_input(self) -> None:
        while True:
            # Quart gives an empty message as None.
            message = await self.websocket.receive() or b""
            self._sending = True
            await self.take(message)
            self._sending = False

    async def _watch_client(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT)
            # While a guest does not read its input, we do not read on either.
            if not self._sending and trio.current_time() - self.websocket.connection.heard_at > SILENCE:
                raise RequestTimeout("the client answers no ping")


def check_path(given: Mapping[str, str | None], kinds: Mapping[str, Any]) -> None:
    """Check the parts of a websocket's path. Raises: InvalidRequest naming the one that is wrong."""
    for name, value in given.items():
        try:
            if value is not None:
                msgspec.convert(value, kinds[name], strict=False)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"{name}: {error}", path=name) from None
