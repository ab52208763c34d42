"""The messages of a websocket into a guest: a session that is attached to, an SSH server, a TCP port. Bytes in and out.

A binary message from the node is output: eight bytes, big-endian, are the offset of its first byte. A binary message to
the node is input. What else there is to say is a JSON object as a text message, with one of the keys below.
"""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec
from msgspec import Meta

from .errors import InvalidRequest
from .guest import Offset, SignalName, Size
from .guest_stream import (
    PIECE,
    Channel,
    Finished,
    FromGuest,
    Input,
    InputEnd,
    InputTaken,
    Opened,
    Output,
    OutputEnd,
    Resize,
    SendSignal,
    ToGuest,
)

OFFSET = struct.Struct(">Q")
MAX_INPUT = PIECE


class NodeText(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`opened` comes first, `finished` last. Output comes from `channel` from then on, stdout at first.

    `input` is the offset up to which the guest has the input of a session: a client keeps the rest, to send it again.
    """

    opened: Opened | None = None
    channel: Channel | None = None
    output_end: bool = False
    input: int | None = None
    finished: Finished | None = None


class ClientText(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`resize` is columns and rows of a terminal, `signal` a name such as INT, `eof` the end of the input.

    `input` is the offset of the next byte of input: what the node has accepted already, it skips.
    """

    resize: Annotated[list[Size], Meta(min_length=2, max_length=2)] | None = None
    signal: SignalName | None = None
    eof: bool = False
    input: Offset | None = None


class NodeEnd:
    """The node's end of one websocket: what the guest sends becomes messages, a client's messages what it is sent."""

    def __init__(self, opened: Opened) -> None:
        self.first = _text(NodeText(opened=opened))
        self._channel = Channel.STDOUT
        self._input: int | None = None

    def messages(self, message: FromGuest) -> list[bytes | str]:
        """Return the messages that say what came from the guest."""
        if isinstance(message, Finished):
            return [_text(NodeText(finished=message))]
        if isinstance(message, InputTaken):
            return [_text(NodeText(input=message.offset))]
        if isinstance(message, OutputEnd):
            return [_text(NodeText(output_end=True))]
        said: list[bytes | str] = [OFFSET.pack(message.offset) + message.data]
        if message.channel is not self._channel:
            self._channel = message.channel
            said.insert(0, _text(NodeText(channel=message.channel)))
        return said

    def read(self, message: bytes | str) -> list[ToGuest]:
        """Return what a client's message asks for. Raises: InvalidRequest."""
        if isinstance(message, bytes):
            starts = range(0, len(message), MAX_INPUT)
            return [self._take(message[start : start + MAX_INPUT]) for start in starts]
        try:
            text = msgspec.json.decode(message, type=ClientText)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"a text message is not understood: {error}") from None
        if text.input is not None:
            self._input = text.input
        found: list[ToGuest] = []
        if text.resize is not None:
            found.append(Resize(columns=text.resize[0], rows=text.resize[1]))
        if text.signal is not None:
            found.append(SendSignal(signal=text.signal))
        return [*found, InputEnd()] if text.eof else found

    def _take(self, data: bytes) -> Input:
        offset = self._input
        if offset is not None:
            self._input = offset + len(data)
        return Input(data=data, offset=offset)


class ClientEnd:
    """The client's end: whole messages of the node become what the guest sent. `opened` is set by the first one.

    `input_taken` counts the bytes of a session's input that the guest has.
    """

    def __init__(self) -> None:
        self.opened: Opened | None = None
        self.input_taken = 0
        self._channel = Channel.STDOUT

    def read(self, message: bytes | str) -> FromGuest | None:
        """Return what a message of the node says; None where it is nothing from the guest. Raises: ValueError."""
        if isinstance(message, bytes):
            (offset,) = OFFSET.unpack_from(message)
            return Output(offset=offset, data=message[OFFSET.size :], channel=self._channel)
        text = msgspec.json.decode(message, type=NodeText)
        if text.opened is not None:
            self.opened, self.input_taken = text.opened, text.opened.input_offset
        if text.input is not None:
            self.input_taken = max(self.input_taken, text.input)
        self._channel = text.channel or self._channel
        return text.finished or (OutputEnd() if text.output_end else None)


def client_text(message: Resize | SendSignal | InputEnd) -> str:
    """Return the text message that asks for it."""
    if isinstance(message, Resize):
        return _text(ClientText(resize=[message.columns, message.rows]))
    return _text(ClientText(signal=message.signal) if isinstance(message, SendSignal) else ClientText(eof=True))


def input_offset(offset: int) -> str:
    """Return the text message that says where the next input begins."""
    return _text(ClientText(input=offset))


def _text(message: msgspec.Struct) -> str:
    return msgspec.json.encode(message).decode()
