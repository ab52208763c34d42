"""A port of a guest by its network: the way of connections to a guest whose channel is not served."""

from __future__ import annotations

import trio

from ...protocols.errors import GuestRefused, InvalidRequest
from ...protocols.guest_stream import (
    Finished,
    FromGuest,
    Input,
    InputEnd,
    Opened,
    Output,
    OutputEnd,
    Resize,
    SendSignal,
    ToGuest,
)

READ_SIZE = 64 << 10


class NetworkStream:
    """A `GuestStream` on a connection; it ends when both sides have ended theirs."""

    def __init__(self, connection: trio.SocketStream) -> None:
        self._connection = connection
        self._offset = self._input_offset = 0
        self._output_ended = False
        self._input_ended = trio.Event()
        self.opened = Opened(offset=0, input_offset=0)

    async def receive(self) -> FromGuest:
        if self._output_ended:
            await self._input_ended.wait()
            return Finished()
        try:
            data = await self._connection.receive_some(READ_SIZE)
        except trio.BrokenResourceError:
            raise GuestRefused("the guest has cut the connection") from None
        if not data:
            self._output_ended = True
            return OutputEnd()
        self._offset += len(data)
        return Output(offset=self._offset - len(data), data=data)

    async def send(self, message: ToGuest) -> None:
        try:
            if isinstance(message, Input):
                await self._send_input(message)
            elif isinstance(message, InputEnd):
                self._input_ended.set()
                await self._connection.send_eof()
            elif isinstance(message, Resize | SendSignal):
                raise InvalidRequest("only a session has a window and takes signals")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._input_ended.set()  # `receive` says why

    async def _send_input(self, message: Input) -> None:
        data = message.data
        if message.offset is not None:
            if message.offset > self._input_offset:
                raise InvalidRequest(f"input goes on at {self._input_offset}, not at {message.offset}", path="offset")
            data = data[self._input_offset - message.offset :]
        await self._connection.send_all(data)
        self._input_offset += len(data)
