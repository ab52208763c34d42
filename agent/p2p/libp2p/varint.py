"""Unsigned varints, and messages that carry their length in one: what every libp2p protocol is made of."""

from __future__ import annotations

from typing import Final, Protocol, TypeVar

import trio
from google.protobuf.message import DecodeError

_LONGEST: Final = 9
MAX_MESSAGE: Final = 64 * 1024


class Message(Protocol):
    """A protobuf message."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name

    def ParseFromString(self, data: bytes, /) -> int: ...  # noqa: N802 - protobuf's name


M = TypeVar("M", bound=Message)


class BadMessage(Exception):
    """A peer sent something that is no message of the protocol."""


def encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes | bytearray, at: int = 0) -> tuple[int, int] | None:
    """The value and where it ends; None when the bytes end first. Raises: ValueError when it is too long."""
    value = 0
    for place in range(_LONGEST):
        if at == len(data):
            return None
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return value, at
    raise ValueError("a varint without an end")


async def write_message(stream: trio.abc.SendStream, message: Message) -> None:
    body = message.SerializeToString()
    await stream.send_all(encode_varint(len(body)) + body)


class MessageReader:
    """Messages one after another from a stream. What follows the last one is in `rest`."""

    def __init__(self, stream: trio.abc.ReceiveStream, *, most: int = MAX_MESSAGE) -> None:
        self._stream = stream
        self._most = most
        self.rest = bytearray()

    async def read(self, message: M) -> M | None:
        """Fill `message`; None at the end of the stream. Raises: BadMessage, BrokenResourceError."""
        while (whole := self._whole()) is None:
            data = await self._stream.receive_some()
            if not data:
                if self.rest:
                    raise BadMessage("the stream ended in the middle of a message")
                return None
            self.rest += data
        start, end = whole
        body = bytes(self.rest[start:end])
        del self.rest[:end]
        try:
            message.ParseFromString(body)
        except (DecodeError, ValueError) as error:
            raise BadMessage(f"no message: {error}") from error
        return message

    def _whole(self) -> tuple[int, int] | None:
        try:
            found = decode_varint(self.rest)
        except ValueError as error:
            raise BadMessage(str(error)) from error
        if found is None:
            return None
        size, start = found
        if size > self._most:
            raise BadMessage(f"a message of {size} bytes, more than {self._most}")
        return (start, start + size) if len(self.rest) >= start + size else None
