"""A small internet of network namespaces: a relay in the open, and hosts behind routers that translate addresses."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

_NAT = """
table ip nat {
  chain out { type nat hook postrouting priority 100; oifname "wan" masquerade; }
}
table ip filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    iifname "lan" accept
    ct state established,related accept
  }
  chain input { type filter hook input priority 0; policy accept; iifname "wan" tcp dport != 0 drop; }
}
"""

_BLOCK = """
table ip block {
  chain forward { type filter hook forward priority -10; ip daddr 10.99.0.12 drop; ip saddr 10.99.0.12 drop; }
  chain input { type filter hook input priority -10; ip saddr 10.99.0.12 drop; }
}
"""


def _run(*command: str, text: str | None = None) -> None:
    done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=30, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces: {' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=30)


def _wire(one: str, its: str, other: str, others: str) -> None:
    _run("ip", "link", "add", its, "netns", one, "type", "veth", "peer", "name", others, "netns", other)


def _address(name: str, device: str, address: str, *flags: str) -> None:
    _run("ip", "-n", name, "address", "add", address, "dev", device, *flags)
    _run("ip", "-n", name, "link", "set", device, "up")


@dataclass(frozen=True)
class Routers:
    """What runs a command in the open (10.99.0.1), behind the first router, and behind the second."""

    in_the_open: tuple[str, ...]
    behind_one: tuple[str, ...]
    behind_two: tuple[str, ...]
    first: tuple[str, ...]

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """The two routers cannot reach each other."""
        _run(*self.first, "nft", "-f", "-", text=_BLOCK)
        try:
            yield
        finally:
            _run(*self.first, "nft", "delete", "table", "ip", "block")


def _need(*tools: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"network namespaces need {tool}")


@contextmanager
def two_on_ipv6() -> Iterator[list[tuple[str, ...]]]:
    """What runs a command on fd00:99::1 and on fd00:99::2, which have no IPv4 but their loopback."""
    _need("ip")
    mark = f"ts6{os.getpid()}"
    with ExitStack() as stack:
        one, two = [stack.enter_context(_namespace(f"{mark}{number}")) for number in (1, 2)]
        _wire(one, "eth0", two, "eth0")
        for number, name in enumerate((one, two), 1):
            _address(name, "eth0", f"fd00:99::{number}/64", "nodad")
        yield [_in(one), _in(two)]


@contextmanager
def two_routers() -> Iterator[Routers]:
    _need("ip", "nft")
    mark = f"tsp{os.getpid()}"
    with ExitStack() as stack:
        net = stack.enter_context(_namespace(f"{mark}net"))
        _run("ip", "-n", net, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", net, "link", "set", "br0", "up")
        outside = stack.enter_context(_namespace(f"{mark}open"))
        _attach(net, outside, "eth0", "10.99.0.1/24", "p0")
        inside = [_behind(stack, net, mark, number) for number in (1, 2)]
        yield Routers(_in(outside), _in(inside[0]), _in(inside[1]), _in(f"{mark}router1"))


def _behind(stack: ExitStack, net: str, mark: str, number: int) -> str:
    router = stack.enter_context(_namespace(f"{mark}router{number}"))
    host = stack.enter_context(_namespace(f"{mark}host{number}"))
    _attach(net, router, "wan", f"10.99.0.{10 + number}/24", f"p{number}")
    _wire(router, "lan", host, "eth0")
    _address(router, "lan", f"192.168.{number}.1/24")
    _address(host, "eth0", f"192.168.{number}.2/24")
    _run("ip", "-n", host, "route", "add", "default", "via", f"192.168.{number}.1")
    _run("ip", "netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    _run("ip", "netns", "exec", router, "nft", "-f", "-", text=_NAT)
    return host


def _attach(net: str, name: str, device: str, address: str, port: str) -> None:
    _wire(name, device, net, port)
    _run("ip", "-n", net, "link", "set", port, "master", "br0", "up")
    _address(name, device, address)


def _in(namespace: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", namespace)
