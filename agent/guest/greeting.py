"""How a connection of a guest channel begins: HELLO, and its answer somewhere among what came before."""

from __future__ import annotations

import secrets

import trio

from ...protocols.guest_channel import NONCE, GuestMisbehaved, Hunter, hello

READ_SIZE = 256 << 10
GREETING_LIMIT = 4 << 20
"""Bytes that may come before the answer to HELLO: of a former connection, and of programs that have started."""
HELLO_AGAIN = 1.0
"""Seconds between two HELLOs to programs that say that they have started."""


async def synchronize(stream: trio.SocketStream) -> bytes:
    """Find the beginning of the frames, however long the guest takes to boot. Returns what came after it.

    Raises: GuestMisbehaved when the channel is closed before, trio.BrokenResourceError.
    """
    hunter = Hunter(nonce := secrets.token_bytes(NONCE))
    said, received = trio.current_time(), 0
    await stream.send_all(hello(nonce))
    while data := await stream.receive_some(READ_SIZE):
        rest = hunter.feed(data)
        if rest is not None:
            return rest
        received += len(data)
        if received > GREETING_LIMIT:
            raise GuestMisbehaved("the guest sends something else than the answer to HELLO")
        if hunter.announced:
            # A program that has just started may not have seen the HELLO; a hostile one says so all the time.
            await trio.sleep_until(said + HELLO_AGAIN)
            hunter = Hunter(nonce := secrets.token_bytes(NONCE))
            said = trio.current_time()
            await stream.send_all(hello(nonce))
    raise GuestMisbehaved("the channel was closed before the guest answered")
