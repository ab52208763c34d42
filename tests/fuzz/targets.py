"""One function of bytes for each format. It returns, or raises what the format's module says that it raises.

`SEEDS` are small documents that are what they should be, from which a fuzzer finds its way.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import h11
import msgspec
import trio
import trio.testing
from google.protobuf.message import Message
from h11._receivebuffer import ReceiveBuffer
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KademliaMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage

from twinshare.agent.bounded_yaml import YamlError, load_yaml
from twinshare.agent.hypervisor.port import Domain, DomainState
from twinshare.agent.images.contract_samples import qcow2_disk
from twinshare.agent.images.disks import detect_packing
from twinshare.agent.images.index import BadIndexError, index_bytes
from twinshare.agent.images.partitions import parts_of
from twinshare.agent.images.qcow2 import BadQcow2Error, parse_header, table_ends
from twinshare.agent.images.registry.auth import parse_challenge
from twinshare.agent.images.registry.http_policy import reason_of
from twinshare.agent.images.registry.manifest import decode_manifest
from twinshare.agent.images.registry.packs import decode_layout
from twinshare.agent.images.signatures import foreign_format, is_raw_disk
from twinshare.agent.images.tar import TarRefused, file_in_folder, open_tar
from twinshare.agent.images.unpack import unpack
from twinshare.agent.p2p.addresses import parse
from twinshare.agent.p2p.libp2p.multiaddr_bytes import from_bytes, to_bytes
from twinshare.agent.p2p.libp2p.varint import BadMessage, MessageReader, encode_varint
from twinshare.agent.p2p.signing import Signer, open_token
from twinshare.agent.vm.record import read_record
from twinshare.api.server.framing import StrictBuffer
from twinshare.protocols.bounded.jws import check_jws
from twinshare.protocols.errors import InvalidRequest, PeerMisbehaved, RegistryFailed, TooLarge
from twinshare.protocols.frames import FrameReader
from twinshare.protocols.membership.statements import signer_of
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods
from twinshare.protocols.ticket import decode_ticket
from twinshare.protocols.user_data import check_user_data

MAX_DISK: Final = 1 << 24
MAX_OUTPUT: Final = 1 << 26
"""Bytes of an unpacked stream that a target looks at: the product's own bound is that of the disk."""
TABLE = all_methods(SERVICES)
SIGNER = Signer(bytes(range(32)))


def read_json(data: bytes) -> None:
    """The bodies of requests, the answers of registries and their token servers."""
    for method in (TABLE["create_vm"], TABLE["send_message"], TABLE["pull_image"]):
        with suppress(InvalidRequest):
            method.arguments({}, {}, data)
    for kind in ("", "application/vnd.oci.image.index.v1+json"):
        with suppress(RegistryFailed):
            decode_manifest(data, kind)
    reason_of(data)


def read_msgpack(data: bytes) -> None:
    """The arguments of peers' calls, their answers, and the frames that carry them."""
    for method in (TABLE["create_vm"], TABLE["list_vms"], TABLE["add_forward"]):
        with suppress(InvalidRequest, TooLarge):
            method.unpack(data)
        with suppress(PeerMisbehaved):
            method.unpack_result(data)
    with suppress(PeerMisbehaved):
        list(FrameReader().feed(data))


def read_yaml(data: bytes) -> None:
    """The user data of VMs."""
    text = data.decode(errors="replace")
    with suppress(YamlError):
        load_yaml(text)
    with suppress(ValueError):
        check_user_data(text)


def read_jws(data: bytes) -> None:
    """Membership certificates, revocations, peer records, tokens of an identity provider; and tickets beside them."""
    text = data.decode(errors="replace")
    for read in (signer_of, check_jws, lambda token: open_token(token, SIGNER.peer_id)):
        with suppress(ValueError):
            read(text)
    with suppress(InvalidRequest):
        decode_ticket(text)


def read_protobuf(data: bytes) -> None:
    """What libp2p's protocols send before and beside ours."""

    async def read(message: Message) -> None:
        send, receive = trio.testing.memory_stream_one_way_pair()
        await send.send_all(data)
        await send.aclose()
        reader = MessageReader(receive)
        with suppress(BadMessage):
            while await reader.read(message) is not None:
                message.Clear()

    async def read_all() -> None:
        for kind in (Identify, KademliaMessage, HopMessage, StopMessage):
            await read(kind())

    trio.run(read_all)


def read_qcow2(data: bytes) -> None:
    """Disks: their headers, and what tells what a file is."""
    foreign_format(data)
    is_raw_disk(data)
    with suppress(BadQcow2Error):
        parse_header(data)
        if len(data) >= 112:
            table_ends(data)
    with suppress(BadIndexError):
        decode_layout(data, [1 << 20], MAX_DISK)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        os.ftruncate(file.fileno(), max(len(data), 1 << 20))
        parts_of(file.fileno(), max(len(data), 1 << 20))


def read_tar(data: bytes) -> None:
    """The layers of a containerDisk, compressed or not."""
    with suppress(TarRefused, InvalidRequest), open_tar(_unpacked(data), max_size=MAX_OUTPUT) as archive:
        content = file_in_folder(archive, "disk")
        while content is not None and content.read(1 << 20):
            pass


def _unpacked(data: bytes) -> Iterator[bytes]:
    packing, stream = detect_packing(data[:16]), io.BytesIO(data)
    total = 0
    for part in unpack(stream.read, packing):
        yield part
        if (total := total + len(part)) > MAX_OUTPUT:
            return


def read_xml(data: bytes) -> None:
    """Our metadata of a domain, which whoever may use libvirt can write."""
    text = data.decode(errors="replace")
    domain = Domain(
        id="x", name="x", state=DomainState.SHUTOFF, reason=None, cpu_cores=1, memory=1, accelerator="qemu",
        metadata=text, started_at=None,
    )  # fmt: skip
    read_record(domain, datetime.now(UTC))


def read_http(data: bytes) -> None:
    """The head of a request, and a registry's challenge."""
    buffer: ReceiveBuffer = StrictBuffer()
    buffer += data
    with suppress(h11.RemoteProtocolError):
        while buffer.maybe_extract_lines():
            pass
    with suppress(RegistryFailed):
        parse_challenge(data.decode("latin-1"))


def read_multiaddr(data: bytes) -> None:
    """Addresses of peers, as text and as libp2p sends them."""
    with suppress(ValueError):
        parse(data.decode(errors="replace"))
    with suppress(ValueError):
        to_bytes(from_bytes(data))


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "json": read_json,
    "msgpack": read_msgpack,
    "yaml": read_yaml,
    "jws": read_jws,
    "protobuf": read_protobuf,
    "qcow2": read_qcow2,
    "tar": read_tar,
    "xml": read_xml,
    "http": read_http,
    "multiaddr": read_multiaddr,
}


def _archive(form: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for name in ("./disk/" + "long" * 60 + ".img", "disk/disk.img"):
            member = tarfile.TarInfo(name)
            member.size = 600
            archive.addfile(member, io.BytesIO(bytes(600)))
    return made.getvalue()


def _request(name: str, **arguments: Any) -> bytes:
    return TABLE[name].pack(arguments)


def _framed(message: Message) -> bytes:
    body = message.SerializeToString()
    return encode_varint(len(body)) + body


SEEDS: Final[Mapping[str, tuple[bytes, ...]]] = {
    "json": (
        b'{"name":"a","image":"b","labels":{"c":"d"},"cloud_init":{"user_data":"#cloud-config\\n"}}',
        b'{"peer_id":"a","message_type":"b","data":{"c":[1,2.5e3,null,true,{}]}}',
        b'{"schemaVersion":2,"config":{"mediaType":"a","digest":"sha256:0","size":1},"layers":[],"manifests":[]}',
        b'{"errors":[{"code":"DENIED","message":"no"}]}',
    ),
    "msgpack": (
        _request("list_vms"),
        msgspec.msgpack.encode({"spec": {"name": "a", "image": "b"}}),
        b"\x00\x00\x00\x04",
    ),
    "yaml": (b"#cloud-config\nusers:\n- &a {name: b, keys: [1, 2]}\n- *a\n<<: {c: 0x1F}\n",),
    "jws": (SIGNER.sign(b'{"a":[1]}').encode(),),
    "protobuf": (
        _framed(Identify(protocol_version="a", listen_addrs=[b"\x04\x7f\x00\x00\x01\x06\x0f\xa1"], protocols=["/b"])),
        _framed(KademliaMessage(type=KademliaMessage.FIND_NODE, key=b"a")),
    ),
    "qcow2": (
        qcow2_disk(1 << 20)[:4096],
        index_bytes(bytes(1 << 16)).encode(),
        b"\0" * 510 + b"\x55\xaa" + b"EFI PART",
    ),
    "tar": (_archive(tarfile.PAX_FORMAT), gzip.compress(_archive(tarfile.GNU_FORMAT), mtime=0)),
    "xml": (
        b'{"image":"a","digest":"b","disk_size":1,"network":"c","owner":"d","key":"e","created_at":"2026-01-01T00:00Z"}',
    ),
    "http": (
        b"GET /api/vm HTTP/1.1\r\nhost: a\r\nauthorization: Bearer b\r\n\r\n",
        b'Bearer realm="https://a/token",service="b",scope="c", Basic realm="d"',
    ),
    "multiaddr": (b"/ip4/127.0.0.1/tcp/4001", b"\x04\x7f\x00\x00\x01\x06\x0f\xa1", struct.pack(">B", 0x29) + bytes(20)),
}


def corpus(format: str) -> Iterator[Path]:
    """The kept cases of a format: inputs that once did what they must not."""
    yield from sorted((Path(__file__).parents[1] / "fuzz_corpus" / format).glob("*"))
