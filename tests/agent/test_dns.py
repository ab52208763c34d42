"""The resolver of VMs' names: answers, strangers' names, garbage, floods, a port that is taken."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.agent.nodes import config, spec, vms_of
from tests.nodes.test_in_memory import call, open_fleet
from twinshare.agent.config import ConfigError, DnsConfig, load_config
from twinshare.agent.dns import AT_ONCE, answer_query, serve_names
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.open_node import open_node
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.errors import VmNotFound

dnslib = pytest.importorskip("dnslib")


def query(name: str, kind: str = "A") -> bytes:
    return bytes(dnslib.DNSRecord.question(name, kind).pack())


async def find(vm: str, node: str | None) -> str | None:
    known = {("web", None): "127.200.0.1", ("web", "alice.home"): "127.200.0.2", ("off", None): None}
    if (vm, node) not in known:
        raise VmNotFound("no")
    return known[vm, node]


async def answered(name: str, kind: str = "A") -> tuple[str, list[str]]:
    answer = await answer_query(query(name, kind), find)
    assert answer is not None
    record = dnslib.DNSRecord.parse(answer)
    return dnslib.RCODE.get(record.header.rcode), [str(row.rdata) for row in record.rr]


@pytest.mark.parametrize(
    ("name", "kind", "code", "rows"),
    [
        ("web.twin", "A", "NOERROR", ["127.200.0.1"]),
        ("WEB.twin", "A", "NOERROR", ["127.200.0.1"]),
        ("web.alice.home.twin", "A", "NOERROR", ["127.200.0.2"]),
        ("web.twin", "AAAA", "NOERROR", []),
        ("off.twin", "A", "NOERROR", []),
        ("twin", "A", "NOERROR", []),
        ("none.twin", "A", "NXDOMAIN", []),
        ("example.org", "A", "REFUSED", []),
        ("twin.example", "A", "REFUSED", []),
    ],
)
async def test_what_is_answered(name: str, kind: str, code: str, rows: list[str]) -> None:
    assert await answered(name, kind) == (code, rows)


async def test_garbage_is_not_answered() -> None:
    whole = query("web.twin")
    for data in [b"", b"x", os.urandom(200), *(whole[:end] for end in range(len(whole))), b"\xc0\x0c" * 100]:
        answer = await answer_query(data, find)
        assert answer is None or dnslib.DNSRecord.parse(answer).rr == []
    loop = whole[:12] + b"\xc0\x0c\x00\x01\x00\x01"
    assert await answer_query(loop, find) is None


async def ask(port: int, data: bytes) -> bytes:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.sendto(data, ("127.0.0.1", port))
        with trio.fail_after(60):
            return await sock.recv(512)


async def test_a_flood_leaves_the_resolver_bounded(autojump_clock: Any) -> None:
    asked = 0

    async def stall(vm: str, node: str | None) -> str | None:
        nonlocal asked
        asked += 1
        await trio.sleep_forever()
        return None

    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_names, "127.0.0.1:0", stall)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(AT_ONCE * 3):
                sock.sendto(query("web.twin"), ("127.0.0.1", port))
        await trio.sleep(1)
        assert asked <= AT_ONCE
        nursery.cancel_scope.cancel()


async def test_a_node_resolves_its_vms_and_goes_on_where_the_port_is_taken(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        made = msgspec.structs.replace(config(tmp_path), dns=DnsConfig(listen=f"127.0.0.1:{port}"))
        async with open_node(made):
            pass
    async with open_node(made) as node:
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        vms = vms_of(node)
        await vms.create_vm(spec(start=True))
        with trio.fail_after(60):
            while (vm := await vms.get_vm("one")).ip is None:
                await trio.sleep(0.01)
        record = dnslib.DNSRecord.parse(await ask(port, query("one.here.twin")))
        assert [str(row.rdata) for row in record.rr] == [vm.ip]


async def test_a_name_is_found_in_the_fleet(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (far, near)):
        await call(far, "create_vm", spec=spec("far", start=True))
        with trio.fail_after(60):
            while (there := await near.address_of("far", "node-0")) is None:
                await trio.sleep(0.01)
        assert await near.address_of("far", None) == there
        with pytest.raises(VmNotFound):
            await near.address_of("none", None)


@pytest.mark.parametrize(
    "text", ["0.0.0.0:53", "127.0.0.1", "127.0.0.1:x", "localhost:53", "127.0.0.1:70000", "8.8.8.8:53"]
)
def test_the_resolver_listens_on_the_loopback_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(f'[dns]\nlisten = "{text}"\n')
    with pytest.raises(ConfigError, match="dns"):
        load_config(tmp_path / "one.toml", environment={})
