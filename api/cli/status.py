"""`twinshare status`: the node at a glance."""

from __future__ import annotations

import click

from ..exchange import plain
from .link import open_link
from .output import Column, duration, json_option, peer_option, print_fields, print_json, say

FIELDS: list[Column] = [
    ("name", lambda health: health.name),
    ("status", lambda health: health.status),
    ("version", lambda health: health.version),
    ("peer id", lambda health: health.peer_id),
    ("hypervisor", lambda health: f"{health.hypervisor} ({health.accelerator})"),
    ("p2p", lambda health: health.p2p),
    ("vms", lambda health: str(health.vms)),
    ("uptime", lambda health: duration(health.uptime)),
]


@click.command()
@click.option("--open", "page", is_flag=True, help="Print a link that opens the node's page once, within a minute.")
@peer_option
@json_option
def status(page: bool, peer: str | None, as_json: bool) -> None:
    """Show how the node is and what room it has."""
    with open_link() as link:
        if page:
            return click.echo(link.send(plain("POST", "/session", dict[str, str]))["link"])
        health = link.call("health", {}, peer)
        room = link.call("capacity", {}, peer)
    if as_json:
        return print_json({"health": health, "capacity": room})
    print_fields(health, FIELDS, as_json=False)
    free, all_ = room.available, room.total
    click.echo(
        f"free:       {free.cpu} of {all_.cpu} virtual CPUs, {free.memory} of {all_.memory} MiB memory, "
        f"{free.disk} of {all_.disk} GiB disk"
    )
    for problem in health.problems:
        say(f"problem: {problem}")
    return None
