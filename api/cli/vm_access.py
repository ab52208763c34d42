"""`twinshare vm ip`, `forward`, `console`, `logs`, `screenshot`, `stats`…: the ways to a running guest."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from ...protocols.endpoint import endpoint
from ...protocols.errors import TwinshareError
from ...protocols.vm import ForwardSpec
from .listing import Listing, listing_options
from .node import NodeClient, open_client
from .output import Column, print_fields, print_json, say, size
from .parameters import FORWARDED_PORT, PORTS, VM_NAME, json_option, peer_option

_POLL = 0.5
"""Seconds between two questions about a guest."""
STATS: list[Column] = [
    ("cpu time", lambda stats: f"{stats.cpu_time:.1f} s"),
    ("memory", lambda stats: size(stats.memory_rss)),
    ("disk read", lambda stats: size(stats.disk_read)),
    ("disk written", lambda stats: size(stats.disk_written)),
    ("disk allocated", lambda stats: size(stats.disk_allocated)),
    ("received", lambda stats: size(stats.net_received)),
    ("sent", lambda stats: size(stats.net_sent)),
]


@click.command("ip")
@click.argument("name", type=VM_NAME)
@click.option(
    "--wait",
    type=click.FloatRange(0),
    is_flag=False,
    flag_value=60.0,
    default=0.0,
    metavar="[SECONDS]",
    help="Wait until it has one; 60 s without a number.",
)
@peer_option
@json_option
def ip(name: str, wait: float, peer: str | None, as_json: bool) -> None:
    """Print a VM's IP address."""
    with open_client() as client:
        found = wait_for_ip(client, name, peer, time.monotonic() + wait)
    if as_json:
        print_json(found)
    elif found.ip is not None:
        click.echo(found.ip)
    if found.ip is None:
        late = f" after {wait:g} s" if wait else "; try --wait"
        raise TwinshareError(f"VM '{name}' has no address that the node knows of{late}")


def wait_for_ip(client: NodeClient, name: str, peer: str | None, deadline: float) -> Any:
    """Return the addresses of a guest that has one, or what there is at `deadline` (monotonic seconds)."""
    while True:
        found = client.call("vm_ip", {"vm": name}, peer)
        if found.ip is not None or time.monotonic() + _POLL > deadline:
            return found
        time.sleep(_POLL)


@click.command("stats")
@click.argument("name", type=VM_NAME)
@peer_option
@json_option
def stats(name: str, peer: str | None, as_json: bool) -> None:
    """Show what a running VM has used since it was started."""
    with open_client() as client:
        print_fields(client.call("vm_stats", {"vm": name}, peer), STATS, as_json=as_json)


@click.command("logs")
@click.argument("name", type=VM_NAME)
@click.option("--follow", "-f", is_flag=True, help="Go on as the guest writes, until Ctrl-C.")
@click.option("--bytes", "limit", type=click.IntRange(1, 262144), default=65536, show_default=True, help="The last N.")
@peer_option
def console_log(name: str, follow: bool, limit: int, peer: str | None) -> None:
    """Print a VM's serial console."""
    with open_client() as client:
        part = client.call("vm_log", {"vm": name, "limit": limit}, peer)
        click.echo(part.text, nl=False)
        while follow:
            time.sleep(_POLL)
            asked = part.next_offset
            part = client.call("vm_log", {"vm": name, "offset": asked}, peer)
            if part.offset != asked:
                say("the log was begun anew or shortened; it goes on with its beginning")
            click.echo(part.text, nl=False)


@click.command("console")
@click.argument("name", type=VM_NAME)
@click.option(
    "--for", "seconds", type=click.FloatRange(0), metavar="SECONDS",
    help="Leave after so many; where the input is no terminal, so many after its end (else after 1 s of silence).",
)  # fmt: skip
@peer_option
def console(name: str, seconds: float | None, peer: str | None) -> None:
    """Use a VM's serial console; Ctrl-] leaves it.

    Everybody who is connected sees the same and may type. Earlier output is in 'twinshare vm logs'.

    \b
    twinshare vm console web
    twinshare vm console web --on alice
    echo 'uname -a' | twinshare vm console web
    twinshare vm console web --for 60 < /dev/null > boot.txt
    """
    from .console import run_console  # what speaks websocket takes a tenth of a second to load

    with open_client() as client:
        found = client.call("get_vm", {"vm": name}, peer)
        run_console(client, found, client.locate(name, peer)[1], seconds)


@click.command("screenshot")
@click.argument("name", type=VM_NAME)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@peer_option
def screenshot(name: str, output: Path | None, peer: str | None) -> None:
    """Take a picture of a running VM's screen.

    \b
    twinshare vm screenshot web -o web.png
    twinshare vm screenshot web > web.png
    """
    if output is None and sys.stdout.isatty():
        raise click.UsageError("name a file with --output, or send the picture somewhere with >")
    with open_client() as client:
        picture = client.call("vm_screenshot", {"vm": name}, peer)
    if output is None:
        sys.stdout.buffer.write(picture.data)
        return
    try:
        output.write_bytes(picture.data)
    except OSError as error:
        raise TwinshareError(f"{output} cannot be written: {error.strerror}") from None
    say(f"wrote {output} ({size(len(picture.data))})")


FORWARDS: list[Column] = [
    ("HOST", lambda forward: endpoint(forward.bind, forward.host_port)),
    ("GUEST", lambda forward: forward.guest_port),
    ("PROTOCOL", lambda forward: forward.protocol),
    ("ACTIVE", lambda forward: forward.active),
]


@click.command("forward")
@click.argument("name", type=VM_NAME)
@click.argument("ports", type=PORTS, metavar="HOST:GUEST")
@click.option("--bind", default="127.0.0.1", show_default=True, help="The node's address to listen on.")
@peer_option
@json_option
def forward(name: str, ports: ForwardSpec, bind: str, peer: str | None, as_json: bool) -> None:
    """Forward a port of the node to a VM, now and whenever it runs.

    With --on it is a port of this node that leads to the peer's VM.

    \b
    twinshare vm forward web 8080:80      then: curl http://127.0.0.1:8080
    twinshare vm forward web 8080:80 --on alice
    twinshare vm forward web 22           the node chooses a port and prints it
    """
    wanted = msgspec.structs.replace(ports, bind=bind.strip("[]"))
    with open_client() as client:
        made = client.call("add_forward", {"vm": name, "forward": wanted}, peer)
    if as_json:
        print_json(made)
    else:
        click.echo(f"{endpoint(made.bind, made.host_port)} -> {name}:{made.guest_port}")


@click.command("forwards")
@click.argument("name", type=VM_NAME)
@peer_option
@listing_options
def forwards(name: str, peer: str | None, listing: Listing) -> None:
    """List the ports forwarded to a VM."""
    with open_client() as client:
        listing.show(client.call("list_forwards", {"vm": name}, peer), FORWARDS)


@click.command("unforward")
@click.argument("name", type=VM_NAME)
@click.argument("port", type=FORWARDED_PORT)
@peer_option
def unforward(name: str, port: int, peer: str | None) -> None:
    """End a port forward."""
    with open_client() as client:
        client.call("remove_forward", {"vm": name, "host_port": port}, peer)
    click.echo(f"port {port} no longer leads to {name}")
