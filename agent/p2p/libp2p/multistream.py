"""`/multistream/1.0.0`: two sides agree on a protocol. The tokens are pure code; the two conversations only move bytes.

A token that is no text is a protocol that we do not speak, nothing worse: in the stock code it ends the host.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from .varint import decode_varint, encode_varint

MULTISTREAM: Final = "/multistream/1.0.0"
_NOT_AVAILABLE: Final = "na"
MAX_TOKEN: Final = 1024
MAX_OFFERS: Final = 16
"""Protocols that a far side may ask for on one stream before we give up."""

Receive: TypeAlias = Callable[[], Awaitable[bytes | bytearray]]
Send: TypeAlias = Callable[[bytes], Awaitable[None]]


class NegotiationFailed(Exception):
    """The far side does not speak multistream, or the bytes ended."""


class NotSpoken(Exception):
    """The far side does not speak the protocol that we asked for."""


def encode(token: str) -> bytes:
    body = token.encode() + b"\n"
    return encode_varint(len(body)) + body


class TokenReader:
    """Tokens out of bytes in pieces of any size; `rest` is what follows the last token taken."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes | bytearray) -> None:
        self.rest += data

    def take(self) -> str | None:
        """The next token, None when it is not complete. Raises: NegotiationFailed."""
        try:
            found = decode_varint(self.rest)
        except ValueError as error:
            raise NegotiationFailed(f"no token: {error}") from error
        if found is None:
            return None
        size, at = found
        if not 0 < size <= MAX_TOKEN:
            raise NegotiationFailed(f"a token of {size} bytes")
        if len(self.rest) < at + size:
            return None
        body, self.rest = self.rest[at : at + size], self.rest[at + size :]
        if not body.endswith(b"\n"):
            raise NegotiationFailed("a token without its end")
        return body[:-1].decode(errors="replace")


class _Conversation:
    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.reader = TokenReader()

    async def next(self) -> str:
        while (token := self.reader.take()) is None:
            data = await self._receive()
            if not data:
                raise NegotiationFailed("the peer ended the conversation")
            self.reader.feed(data)
        return token

    async def greet(self) -> None:
        if (token := await self.next()) != MULTISTREAM:
            raise NegotiationFailed(f"the peer greets with {token[:64]!r}")


async def select(receive: Receive, send: Send, protocol: str) -> bytes:
    """Ask for `protocol`, in one write with the greeting. Returns what already came after the agreement.

    Raises: NotSpoken, NegotiationFailed, and what `receive` and `send` raise.
    """
    talk = _Conversation(receive)
    await send(encode(MULTISTREAM) + encode(protocol))
    await talk.greet()
    token = await talk.next()
    if token == _NOT_AVAILABLE:
        raise NotSpoken(protocol)
    if token != protocol:
        raise NegotiationFailed(f"the peer agrees to {token[:64]!r}, not to {protocol!r}")
    return talk.reader.rest


async def answer(receive: Receive, send: Send, speaks: Callable[[str], bool]) -> tuple[str, bytes]:
    """Agree to the first protocol that is asked for and that `speaks` accepts; returns it and what came after it.

    Raises: NegotiationFailed, and what `receive` and `send` raise.
    """
    talk = _Conversation(receive)
    await talk.greet()
    await send(encode(MULTISTREAM))
    for _ in range(MAX_OFFERS):
        token = await talk.next()
        if speaks(token):
            await send(encode(token))
            return token, talk.reader.rest
        await send(encode(_NOT_AVAILABLE))
    raise NegotiationFailed(f"the peer asked for {MAX_OFFERS} protocols that we do not speak")
