"""An optional resolver on a loopback port: `VM.twin` and `VM.NODE.twin` are the addresses of VMs on this machine.

It answers for these names alone and asks nobody else, so that a system's resolver can send it the domain
`twin`. Whoever is on this machine may ask; the addresses admit the node's own user only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from ..protocols.errors import TwinshareError
from .config import loopback_endpoint

log = structlog.get_logger(__name__)

DOMAIN = "twin"
TTL = 5
"""Seconds for which an answer may be kept: a VM that stops has no address."""
MAX_QUERY = 512
AT_ONCE = 16
"""Queries that are answered at once; more are dropped, and asked again by their resolvers."""
ANSWER_WITHIN = 4.0

Find = Callable[[str, str | None], Awaitable[str | None]]
"""Returns the address of a VM by its name, and the node's if there is one; None while it has none.

Raises: TwinshareError where there is no such VM.
"""


async def serve_names(
    listen: str, find: Find, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:  # fmt: skip
    """Answer queries until it is cancelled; the task status is the port. A port that is taken is logged."""
    host, port = loopback_endpoint(listen)
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        try:
            await sock.bind((host, port))
        except OSError as error:
            log.warning("names of VMs are not resolved", listen=listen, why=error.strerror)
            task_status.started(0)
            return
        task_status.started(sock.getsockname()[1])
        room = trio.Semaphore(AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                query, sender = await sock.recvfrom(MAX_QUERY)
                try:
                    room.acquire_nowait()
                except trio.WouldBlock:
                    continue
                nursery.start_soon(_serve, sock, query, sender, find, room)


async def _serve(
    sock: trio.socket.SocketType, query: bytes, sender: tuple[str, int], find: Find, room: trio.Semaphore
) -> None:
    try:
        with trio.move_on_after(ANSWER_WITHIN):
            if (answer := await answer_query(query, find)) is not None:
                await sock.sendto(answer, sender)
    except OSError as error:
        log.debug("an answer could not be sent", why=error.strerror)
    finally:
        room.release()


async def answer_query(query: bytes, find: Find) -> bytes | None:
    """Return the answer to a query; None for what is no query."""
    # Here: a node without a resolver does not load it.
    import dnslib

    dns: Any = dnslib
    try:
        record = dns.DNSRecord.parse(query)
        if record.header.qr or len(record.questions) != 1:
            return None
        question = record.questions[0]
        labels = [label.decode("ascii").lower() for label in question.qname.label]
    except (dns.DNSError, UnicodeDecodeError, ValueError, IndexError):
        return None
    reply = record.reply()
    if not labels or labels[-1] != DOMAIN:
        reply.header.rcode = dns.RCODE.REFUSED
        return bytes(reply.pack())
    try:
        found = await _find(labels[:-1], find)
    except TwinshareError:
        reply.header.rcode = dns.RCODE.NXDOMAIN
        return bytes(reply.pack())
    if (
        found is not None
        and question.qtype in {dns.QTYPE.A, dns.QTYPE.ANY}
        and ipaddress.ip_address(found).version == 4
    ):
        reply.add_answer(dns.RR(question.qname, dns.QTYPE.A, rdata=dns.A(found), ttl=TTL))
    return bytes(reply.pack())


async def _find(labels: list[str], find: Find) -> str | None:
    """`NAME` or `NAME.NODE`; a node's name may have dots. The domain itself exists and has no address."""
    if not labels:
        return None
    name, *node = labels
    return await find(name, ".".join(node) or None)
