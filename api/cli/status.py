"""`twinshare status`: the node at a glance."""

from __future__ import annotations

import click

from .node import open_client
from .output import Column, duration, print_fields, print_json, say
from .parameters import json_option, peer_option

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
@peer_option
@json_option
def status(peer: str | None, as_json: bool) -> None:
    """Show the node's health and its free capacity."""
    with open_client() as client:
        health = client.call("health", {}, peer)
        capacity = client.call("capacity", {}, peer)
    if as_json:
        return print_json({"health": health, "capacity": capacity})
    print_fields(health, FIELDS, as_json=False)
    free, total = capacity.available, capacity.total
    click.echo(
        f"free:       {free.cpu} of {total.cpu} virtual CPUs, {free.memory} of {total.memory} MiB memory, "
        f"{free.disk} of {total.disk} GiB disk"
    )
    for problem in health.problems:
        say(f"problem: {problem}")
    return None
