"""What both ends of a circuit share: protocol names, one question with its answer, a stream as a pipe."""

from __future__ import annotations

from typing import Final, TypeVar

import trio

from ...host import Stream
from ..pacing import BulkRoom
from ..pipe import PipeBroken
from ..varint import BadMessage, Message, MessageReader, write_message

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE: Final = 4096
ANSWER_TIME: Final = 5.0
"""Seconds for one message of a far side."""

M = TypeVar("M", bound=Message)


async def ask(stream: Stream, question: Message, answer: M, deadline: float = ANSWER_TIME) -> tuple[M, bytes]:
    """Fill `answer` with what the far side says to `question`; also what already follows it.

    Raises: BadMessage, also when there is none in time; BrokenResourceError.
    """
    reader = MessageReader(stream, most=MAX_MESSAGE)
    with trio.move_on_after(deadline):
        await write_message(stream, question)
        if await reader.read(answer) is None:
            raise BadMessage("no answer")
        return answer, bytes(reader.rest)
    raise BadMessage(f"no answer within {deadline:g} s")


class StreamPipe:
    """A stream through a relay, used as a pipe. `held` came before it was one. `write_timeout` is in seconds."""

    def __init__(self, stream: Stream, held: bytes, write_timeout: float) -> None:
        self._stream = stream
        self._held = held
        self._write_timeout = write_timeout

    async def receive(self) -> bytes:
        if self._held:
            data, self._held = self._held, b""
            return data
        try:
            return bytes(await self._stream.receive_some())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PipeBroken(f"the relayed connection broke: {error}") from error

    async def send(self, data: bytes | bytearray) -> None:
        try:
            with memoryview(data) as view:
                for at in range(0, len(view), 65536):
                    with trio.move_on_after(self._write_timeout) as waiting:
                        await self._stream.send_all(view[at : at + 65536])
                    if waiting.cancelled_caught:
                        raise PipeBroken(f"the relay took nothing for {self._write_timeout:g} s")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PipeBroken(f"the relayed connection broke: {error}") from error

    def bulk_room(self) -> BulkRoom:
        """Only the relay's connection could tell: pieces that are small enough for most lines."""
        return BulkRoom(65536)

    def close(self) -> None:
        self._stream.reset()
