"""What goes as HTTP/1.1: nothing that another server in front may read differently; refusals are JSON, and final."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h11
import pytest
import trio
from h11._receivebuffer import ReceiveBuffer

from tests.api.served import served
from twinshare.api.server.framing import StrictBuffer

HEAD = b"Host: localhost\r\n"
JSON = HEAD + b"Content-Type: application/json\r\n"
BODY = b'{"name":"evil","image":"disk"}'

HOSTILE = {
    "length beside chunks":
        b"POST /api/vm HTTP/1.1\r\n" + JSON + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"GET /api/vm HTTP/1.1\n" + HEAD.replace(b"\r", b"") + b"\n",
    "one bare line feed": b"GET /api/vm HTTP/1.1\r\nA: b\nHost: localhost\r\n\r\n",
    "folded header": b"GET /api/vm HTTP/1.1\r\n" + HEAD + b"X: a\r\n b\r\n\r\n",
    "unknown transfer encoding": b"POST /api/vm HTTP/1.1\r\n" + JSON + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /api/vm HTTP/1.1\r\n" + JSON + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\nhello",
    "signed length": b"POST /api/vm HTTP/1.1\r\n" + JSON + b"Content-Length: +5\r\n\r\nhello",
    "space before colon": b"GET /api/vm HTTP/1.1\r\nHost : localhost\r\n" + HEAD + b"\r\n",
    "NUL in a header": b"GET /api/vm HTTP/1.1\r\n" + HEAD + b"X: a\x00b\r\n\r\n",
    "no host": b"GET /api/vm HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /api/vm HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "HTTP/2 in clear": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /api/vm\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a head without an end": b"GET / HTTP/1.1\r\n" + HEAD + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
    "bad chunk": b"POST /api/vm HTTP/1.1\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
async def test_refused_with_json_and_closed(data: bytes, tmp_path: Path) -> None:
    smuggled = b"POST /api/vm HTTP/1.1\r\n" + JSON + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    async with served(tmp_path) as api:
        heard = await trio.to_thread.run_sync(api.raw, data + smuggled)
        head, _, body = heard.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 4"), heard
        assert b"content-type: application/json" in head
        assert b"connection: close" in head
        assert json.loads(body)["code"] in {"invalid_request", "too_large"}
        assert len(re.findall(rb"HTTP/1\.1 \d", heard)) == 1
        assert await api.get("/api/vm") == {"vms": []}


async def test_h2c_is_not_offered(tmp_path: Path) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    async with served(tmp_path) as api:
        heard = await trio.to_thread.run_sync(api.raw, b"GET /api/vm HTTP/1.1\r\n" + HEAD + upgrade)
        assert heard.startswith(b"HTTP/1.1 200")


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    one = b"GET /api/vm HTTP/1.1\r\n" + HEAD + b"\r\n"
    two = b"GET /api/health HTTP/1.1\r\n" + HEAD + b"\r\n"
    async with served(tmp_path) as api:
        heard = await trio.to_thread.run_sync(api.raw, one + two + one)
        assert heard.count(b"HTTP/1.1 200") == 3
        assert heard.index(b'{"vms"') < heard.index(b'"peer_id"') < heard.rindex(b'{"vms"')


def feed(*parts: bytes) -> list[bytearray] | None:
    buffer = StrictBuffer()
    lines = None
    for part in parts:
        buffer += part  # type: ignore[misc]  # h11 says that it returns its own class
        lines = buffer.maybe_extract_lines()
    return lines


def test_a_head_in_pieces() -> None:
    assert feed(b"a: b\r", b"\n", b"c: d\r\n\r", b"\nrest") == [bytearray(b"a: b"), bytearray(b"c: d")]
    assert feed(b"\r\n") == []
    assert feed(b"a: b\r\n") is None
    with pytest.raises(h11.RemoteProtocolError):
        feed(b"a: b", b"\n")


def test_h11_has_what_we_touch() -> None:
    """Fails when a version of h11 lacks a private attribute that framing.py relies on."""
    connection = h11.Connection(h11.SERVER)
    assert isinstance(vars(connection)["_receive_buffer"], ReceiveBuffer)
    assert vars(ReceiveBuffer()).keys() >= {"_data", "_multiple_lines_search"}
    assert callable(ReceiveBuffer._extract)
