"""`/noise` on the wire: the handshake is libp2p's, the framing behind it is ours.

Stock framing reads twice and writes once for each message. Here everything that has arrived is opened at once, and one
write carries any number of messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .pacing import BulkRoom
from .pipe import Pipe, PipeBroken

if TYPE_CHECKING:
    from collections.abc import Iterator

_TAG: Final = 16
_LENGTH: Final = 2
MAX_PLAINTEXT: Final = 65535 - _TAG
MAX_AT_ONCE: Final = 1024
"""Messages that are opened between two turns of the event loop: they may be of no byte."""


@dataclass(frozen=True, slots=True)
class CipherKeys:
    """The two keys that the handshake leaves, for nonces that start at 0."""

    sending: bytes
    receiving: bytes


class Sealer:
    """Plaintext of any size into noise messages, each preceded by its length."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = 0

    def seal(self, data: bytes) -> bytes | bytearray:
        if len(data) <= MAX_PLAINTEXT:
            sealed = self._cipher.encrypt(self._next_nonce(), data, None)
            return len(sealed).to_bytes(_LENGTH, "big") + sealed
        messages = -(-len(data) // MAX_PLAINTEXT)
        out = bytearray(len(data) + messages * (_LENGTH + _TAG))
        with memoryview(data) as plain, memoryview(out) as room:
            at = 0
            for start in range(0, len(data), MAX_PLAINTEXT):
                piece = plain[start : start + MAX_PLAINTEXT]
                size = len(piece) + _TAG
                room[at : at + _LENGTH] = size.to_bytes(_LENGTH, "big")
                at += _LENGTH
                self._cipher.encrypt_into(self._next_nonce(), piece, None, room[at : at + size])
                at += size
        return out

    def _next_nonce(self) -> bytes:
        nonce = self._nonce.to_bytes(12, "little")
        self._nonce += 1
        return nonce[-4:] + nonce[:-4]


class Opener:
    """Noise messages in pieces of any size into their plaintext."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = 0
        self._held = b""
        self.more = False

    @property
    def midway(self) -> bool:
        """Part of a message has arrived and the rest has not."""
        return bool(self._held)

    def open(self, data: bytes) -> bytes | bytearray:
        """The plaintext of complete messages, `MAX_AT_ONCE` at most; `more` says whether there may be others.

        Raises: PipeBroken when the far side did not seal one.
        """
        if self._held:
            data = self._held + data
        with memoryview(data) as view:
            messages = list(islice(_messages(view), MAX_AT_ONCE))
            self.more = len(messages) == MAX_AT_ONCE
            self._held = bytes(view[messages[-1][1] if messages else 0 :])
            try:
                if len(messages) == 1:
                    start, end = messages[0]
                    return self._cipher.decrypt(self._next_nonce(), view[start:end], None)
                return self._open_all(view, messages)
            except InvalidTag as error:
                raise PipeBroken("the peer sent bytes that it did not seal") from error

    def _open_all(self, view: memoryview, messages: list[tuple[int, int]]) -> bytearray:
        plain = bytearray(sum(end - start - _TAG for start, end in messages))
        with memoryview(plain) as room:
            at = 0
            for start, end in messages:
                size = end - start - _TAG
                self._cipher.decrypt_into(self._next_nonce(), view[start:end], None, room[at : at + size])
                at += size
        return plain

    def _next_nonce(self) -> bytes:
        nonce = self._nonce.to_bytes(12, "little")
        self._nonce += 1
        return nonce[-4:] + nonce[:-4]


def _messages(view: memoryview) -> Iterator[tuple[int, int]]:
    """Where the complete messages begin and end. Raises: PipeBroken for one that is shorter than its seal."""
    at = 0
    while len(view) - at >= _LENGTH:
        start = at + _LENGTH
        size = int.from_bytes(view[at:start], "big")
        if size < _TAG:
            raise PipeBroken("the peer sent bytes that it did not seal")
        at = start + size
        if at > len(view):
            return
        yield start, at


class SecureChannel:
    """A pipe behind its handshake. Cancelling `send` leaves half a message on the wire: one task alone may call it."""

    def __init__(self, pipe: Pipe, keys: CipherKeys, held: bytes = b"") -> None:
        self._pipe = pipe
        self._sealer = Sealer(keys.sending)
        self._opener = Opener(keys.receiving)
        self._sealed = held  # arrived together with the last handshake message
        self._plain: bytes | bytearray = b""

    async def receive(self) -> bytes | bytearray:
        """Some plaintext; empty at the end. Raises: PipeBroken, also when the end comes amid a message."""
        if self._plain:
            plain, self._plain = self._plain, b""
            return plain
        while True:
            data, self._sealed = self._sealed, b""
            if self._opener.more:
                await trio.lowlevel.checkpoint()
            elif not data:
                data = await self._pipe.receive()
                if not data:
                    if self._opener.midway:
                        raise PipeBroken("the connection ended in the middle of a message")
                    return b""
            if plain := self._opener.open(data):
                return plain

    def put_back(self, plain: bytes) -> None:
        """The next `receive` returns it again."""
        self._plain = plain + bytes(self._plain)

    async def send(self, data: bytes) -> None:
        """Send all of `data`, which is not empty. Raises: PipeBroken."""
        await self._pipe.send(self._sealer.seal(data))

    def bulk_room(self) -> BulkRoom:
        """How much bulk may be sent now."""
        return self._pipe.bulk_room()

    def close(self) -> None:
        self._pipe.close()
