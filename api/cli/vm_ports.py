"""`twinshare vm forward`, `forwards`, `unforward`: ports of the node that lead to a guest."""

from __future__ import annotations

import click
import msgspec

from ...protocols.vm import ForwardSpec
from .link import open_link
from .names import PORTS, VM_NAME
from .output import Column, json_option, peer_option, print_json, print_table

COLUMNS: list[Column] = [
    ("HOST", lambda forward: f"{forward.bind}:{forward.host_port}"),
    ("GUEST", lambda forward: forward.guest_port),
    ("PROTOCOL", lambda forward: forward.protocol),
    ("ACTIVE", lambda forward: forward.active),
]


@click.command("forward")
@click.argument("name", type=VM_NAME)
@click.argument("ports", type=PORTS, metavar="HOST:GUEST")
@click.option("--udp", is_flag=True, help="UDP instead of TCP.")
@click.option("--bind", default="127.0.0.1", show_default=True, help="The node's address to listen on.")
@peer_option
@json_option
def forward(name: str, ports: ForwardSpec, udp: bool, bind: str, peer: str | None, as_json: bool) -> None:
    """Forward a port of the node to a VM, now and whenever it runs; with --on, of this node to a peer's VM.

    \b
    twinshare vm forward web 8080:80      then: curl http://127.0.0.1:8080
    twinshare vm forward web 8080:80 --on alice
    twinshare vm forward web 22           the node chooses a port and tells it
    """
    wanted = msgspec.structs.replace(ports, protocol="udp" if udp else "tcp", bind=bind)
    with open_link() as link:
        made = link.call("add_forward", {"vm": name, "forward": wanted}, peer)
    if as_json:
        print_json(made)
    else:
        click.echo(f"{made.bind}:{made.host_port} -> {name}:{made.guest_port}")


@click.command("forwards")
@click.argument("name", type=VM_NAME)
@peer_option
@json_option
def forwards(name: str, peer: str | None, as_json: bool) -> None:
    """List the ports forwarded to a VM."""
    with open_link() as link:
        print_table(link.call("list_forwards", {"vm": name}, peer), COLUMNS, as_json=as_json)


@click.command("unforward")
@click.argument("name", type=VM_NAME)
@click.argument("host_port", type=click.IntRange(1, 65535))
@peer_option
def unforward(name: str, host_port: int, peer: str | None) -> None:
    """End a port forward."""
    with open_link() as link:
        link.call("remove_forward", {"vm": name, "host_port": host_port}, peer)
    click.echo(f"port {host_port} no longer leads to {name}")
