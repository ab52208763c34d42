"""What is said on a stream on which a peer's image is read: one question and its answer, then chunks for the asking.

Frames are written as at the head of a tunnel (`tunnel.encode`). After the answer comes the chunk index, if it was asked
for. Then the one who asks names chunks by their place in the index, and for each in its order gets a length of four
bytes, big-endian, and a zstd frame so long; a length of 0 is a chunk that cannot be read. Several questions may be
under way; the end of the stream ends it.

Who sends a certificate with its question asks for a connection of its own for the chunks. When the answer offers one,
the stream carries nothing more, and both last equally long. On that connection, which is TLS 1.3 with both
certificates, the same is asked, and each answer comes after its length of four bytes.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from .errors import ErrorBody

PROTOCOL = "/twinshare/blob/1.0.0"
LENGTH = struct.Struct(">I")
MAX_CHUNKS = 64
"""How many chunks one question may name."""
MAX_BATCH = 1 << 20
"""How many bytes they may hold together, unless it is a single one."""


Certificate: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=1024)]
"""X.509, self-signed, DER."""


class BlobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which image, by its digest; whether its index is wanted too.

    With the `certificate` of this end a connection for the chunks is asked for.
    """

    digest: Annotated[str, Meta(pattern=r"^blake3:[0-9a-f]{64}\Z")]
    index: bool = False
    certificate: Certificate | None = None


class BulkOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A TLS connection is taken from whoever names `ticket` at the TCP port `port` of the node that answers."""

    ticket: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    port: Annotated[int, Meta(ge=1, le=65535)]
    certificate: Certificate


class BlobAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`index_size` is how many bytes of index follow. `error` says why there is nothing to read."""

    index_size: Annotated[int, Meta(ge=0)] = 0
    error: ErrorBody | None = None
    bulk: BulkOffer | None = None


class BlobWant(msgspec.Struct, frozen=True, kw_only=True):
    """Chunks, by their place in the index."""

    chunks: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1, max_length=MAX_CHUNKS)]
