"""`/noise` on the wire: the handshake is libp2p's, the framing behind it is ours.

Stock framing reads twice and writes once for each message. Here one read and one write carry any number of messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .pacing import TURN, BulkRoom
from .pipe import Pipe, PipeBroken

_TAG: Final = 16
_LENGTH: Final = 2
MAX_PLAINTEXT: Final = 65535 - _TAG


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
    """Noise messages in pieces of any size into their plaintext: `feed` what arrives, take it with `next_plaintext`."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = 0
        self._arrived = memoryview(b"")
        self._at = 0
        self._held = bytearray()  # the beginning of a message that has not arrived whole

    @property
    def midway(self) -> bool:
        """Part of a message has arrived and the rest has not."""
        return bool(self._held)

    def feed(self, data: bytes) -> None:
        """Add what has arrived, once `next_plaintext` has returned None."""
        self._arrived, self._at = memoryview(data), 0

    def next_plaintext(self) -> bytes | None:
        """Decrypt the next message; None when it has not arrived whole.

        Raises: PipeBroken when the far side did not seal it.
        """
        if self._held:
            return self._next_held()
        start = self._at + _LENGTH
        end = start + self._message_size(self._arrived, self._at) if start <= len(self._arrived) else start
        if end > len(self._arrived):
            self._hold(len(self._arrived))
            return None
        self._at = end
        return self._decrypt(self._arrived[start:end])

    def _next_held(self) -> bytes | None:
        """As above, of a message that arrives in parts: it alone is copied."""
        if not self._hold(_LENGTH) or not self._hold(_LENGTH + self._message_size(self._held, 0)):
            return None
        message, self._held = self._held, bytearray()
        with memoryview(message) as view:
            return self._decrypt(view[_LENGTH:])

    def _hold(self, size: int) -> bool:
        """Add to the held bytes until they are `size`, if so many have arrived."""
        part = self._arrived[self._at : self._at + max(0, size - len(self._held))]
        self._held += part
        self._at += len(part)
        return len(self._held) >= size

    @staticmethod
    def _message_size(data: memoryview | bytearray, at: int) -> int:
        size = int.from_bytes(data[at : at + _LENGTH], "big")
        if size < _TAG:
            raise PipeBroken("the peer sent bytes that it did not seal")
        return size

    def _decrypt(self, sealed: memoryview) -> bytes:
        nonce = self._nonce.to_bytes(12, "little")
        self._nonce += 1
        try:
            return self._cipher.decrypt(nonce[-4:] + nonce[:-4], sealed, None)
        except InvalidTag as error:
            raise PipeBroken("the peer sent bytes that it did not seal") from error


class SecureChannel:
    """A pipe behind its handshake. Cancelling `send` leaves half a message on the wire: one task alone may call it."""

    def __init__(self, pipe: Pipe, keys: CipherKeys, held: bytes = b"") -> None:
        self._pipe = pipe
        self._sealer = Sealer(keys.sending)
        self._opener = Opener(keys.receiving)
        self._opener.feed(held)  # arrived together with the last handshake message
        self._plain = b""
        self._turn_ends = 0.0

    async def receive(self) -> bytes:
        """One message's plaintext; empty at the end. Raises: PipeBroken, also when the end comes amid a message."""
        if self._plain:
            plain, self._plain = self._plain, b""
            return plain
        while True:
            if trio.current_time() > self._turn_ends:
                await trio.lowlevel.checkpoint()
                self._turn_ends = trio.current_time() + TURN
            message = self._opener.next_plaintext()
            if message:
                return message
            if message is None:
                data = await self._pipe.receive()
                if not data:
                    if self._opener.midway:
                        raise PipeBroken("the connection ended in the middle of a message")
                    return b""
                self._opener.feed(data)
                self._turn_ends = trio.current_time() + TURN

    def put_back(self, plain: bytes) -> None:
        """The next `receive` returns it again."""
        self._plain = plain + self._plain

    async def send(self, data: bytes) -> None:
        """Send all of `data`, which is not empty. Raises: PipeBroken."""
        await self._pipe.send(self._sealer.seal(data))

    def bulk_room(self) -> BulkRoom:
        """How much bulk may be sent now."""
        return self._pipe.bulk_room()

    def close(self) -> None:
        self._pipe.close()
