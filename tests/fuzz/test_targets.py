"""No bytes from outside make a parser raise what it does not name, take long, or take much memory."""

from __future__ import annotations

import gzip
import random
import tarfile
import time
import tracemalloc
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS, corpus

MAX_SECONDS = 2.0
MAX_MEMORY = 64 << 20
"""Bytes that a case may take for a moment: a parser's buffers and its answer."""
KEPT = [pytest.param(format, file, id=f"{format}/{file.name}") for format in TARGETS for file in corpus(format)]
FORMATS = sorted(TARGETS)


ANNOUNCING = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE)


def token(head: bytes) -> bytes:
    """A JWS with this header."""
    return urlsafe_b64encode(head).rstrip(b"=") + b".e30.AA"


def header(kind: bytes, size: int) -> bytes:
    """The header of one member of an archive."""
    member = tarfile.TarInfo("a")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def bounded(format: str, data: bytes) -> None:
    """Run one case, with its time and memory."""
    tracemalloc.start()
    try:
        begun = time.process_time()
        TARGETS[format](data)
        assert time.process_time() - begun < MAX_SECONDS
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format", FORMATS)
def test_seeds_are_read(format: str) -> None:
    for seed in SEEDS[format]:
        bounded(format, seed)


@pytest.mark.parametrize(("format", "file"), KEPT)
def test_a_kept_case_does_no_harm_any_more(format: str, file: Path) -> None:
    bounded(format, file.read_bytes())


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=2048), seed=st.integers(0, 1 << 32))
def test_any_bytes_and_changed_documents(format: str, data: bytes, seed: int) -> None:
    TARGETS[format](data)
    chance = random.Random(seed)
    document = bytearray(chance.choice(SEEDS[format]))
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(document) + 1)
        cut = chance.choice((0, 1, 4, 16))
        document[place : place + cut] = chance.choice((b"", data[:8], bytes([chance.randrange(256)]), b"\xff" * 8))
    TARGETS[format](bytes(document))


DEEP = 100_000
BOMBS = {
    "json": [
        b"[" * DEEP, b'{"a":' * DEEP, b"[" + b"[]," * (1 << 19) + b"[]]", b'"\\' * (1 << 19), b'"' + b'\\"' * DEEP,
        b'{"token":"a","x":' + b"[" * DEEP, b"1" * DEEP,
    ],
    "msgpack": [b"\x91" * DEEP, b"\xdd\x00\x10\x00\x00" + b"\x80" * (1 << 20), b"\xdd\xff\xff\xff\xff"],
    "yaml": [
        b"#cloud-config\na: " + b"[" * 60_000,
        b"#cloud-config\nk0: &a0 [1]\n"
        + b"".join(b"k%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)),
    ],
    "jws": [b"A" * 20_000, token(b"[" * 2000), token(b'{"kid":' + b"[" * 1500 + b"}"), b"." * 16_000],
    "protobuf": [b"\xff\xff\xff\xff\x0f", b"\x80\x80\x04" + b"\x0a\x00" * 32_768],
    "qcow2": [b"QFI\xfb" + b"\xff" * 200, b"twinidx" + b"\xff" * 64],
    "tar": [
        *(gzip.compress(header(kind, 1 << 33) + bytes(1 << 26)) for kind in ANNOUNCING),
        gzip.compress(header(tarfile.XGLTYPE, 0) * 5000),
        gzip.compress(header(tarfile.REGTYPE, 0) * 100_000),
    ],
    "xml": [b"[" * DEEP, b'{"image":' + b"[" * DEEP, b'{"later":' + b"[" * DEEP, b'{"later":' + b'{"a":' * DEEP],
    "http": [
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000, b'a="\\' * 10_000, b"Bearer " + b"," * 30_000 + b" " * 30_000,
    ],
    "multiaddr": [b"/ip4/" * 1000, b"\xa5\x03" + b"\xff" * 9, b"\x35\xff\xff\x03" + b"a" * 100],
}  # fmt: skip
"""Documents that are small and would be large or deep: headers that announce gigabytes, aliases of aliases."""


@pytest.mark.parametrize("format", FORMATS)
def test_bombs_are_refused_in_little_time_and_memory(format: str) -> None:
    for bomb in BOMBS[format]:
        bounded(format, bomb)
