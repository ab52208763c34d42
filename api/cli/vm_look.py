"""`twinshare vm ip`, `stats`, `logs`, `console`, `screenshot`: what a running VM shows of itself."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from ...protocols.errors import TwinshareError
from .link import Link, open_link
from .names import VM_NAME
from .output import Column, json_option, peer_option, print_fields, print_json, say, size

# Seconds between two looks at a guest.
_LOOK = 0.5
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
    help="Wait until it has one; 60 s if nothing is said.",
)
@peer_option
@json_option
def ip(name: str, wait: float, peer: str | None, as_json: bool) -> None:
    """Print a VM's IP address."""
    with open_link() as link:
        found = wait_for_ip(link, name, peer, time.monotonic() + wait)
    if as_json:
        print_json(found)
    elif found.ip is not None:
        click.echo(found.ip)
    if found.ip is None:
        late = f" after {wait:g} s" if wait else "; try --wait"
        raise TwinshareError(f"VM '{name}' has no address that the node knows of{late}")


def wait_for_ip(link: Link, name: str, peer: str | None, deadline: float) -> Any:
    """The addresses of a guest that has one, or what there is at `deadline` (monotonic seconds)."""
    while True:
        found = link.call("vm_ip", {"vm": name}, peer)
        if found.ip is not None or time.monotonic() + _LOOK > deadline:
            return found
        time.sleep(_LOOK)


@click.command("stats")
@click.argument("name", type=VM_NAME)
@peer_option
@json_option
def stats(name: str, peer: str | None, as_json: bool) -> None:
    """Show what a running VM has used since it was started."""
    with open_link() as link:
        print_fields(link.call("vm_stats", {"vm": name}, peer), STATS, as_json=as_json)


@click.command("logs")
@click.argument("name", type=VM_NAME)
@click.option("--follow", "-f", is_flag=True, help="Go on as the guest writes, until Ctrl-C.")
@click.option("--bytes", "limit", type=click.IntRange(1, 262144), default=65536, show_default=True, help="The last N.")
@peer_option
def console_log(name: str, follow: bool, limit: int, peer: str | None) -> None:
    """Print a VM's serial console."""
    with open_link() as link:
        part = link.call("vm_log", {"vm": name, "limit": limit}, peer)
        click.echo(part.text, nl=False)
        while follow:
            time.sleep(_LOOK)
            part = link.call("vm_log", {"vm": name, "offset": part.next_offset}, peer)
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

    All who are there see the same and may type. What the VM said before is in 'twinshare vm logs'.

    \b
    twinshare vm console web
    twinshare vm console web --on alice
    echo 'uname -a' | twinshare vm console web
    twinshare vm console web --for 60 < /dev/null > boot.txt
    """
    from .console import visit  # what speaks websocket takes a tenth of a second to load

    with open_link() as link:
        visit(link, link.call("get_vm", {"vm": name}, peer), peer, seconds)


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
    with open_link() as link:
        picture = link.call("vm_screenshot", {"vm": name}, peer)
    if output is None:
        sys.stdout.buffer.write(picture.data)
        return
    try:
        output.write_bytes(picture.data)
    except OSError as error:
        raise TwinshareError(f"{output} cannot be written: {error.strerror}") from None
    say(f"wrote {output} ({size(len(picture.data))})")
