"""`twinshare vm ls`, `show`."""

from __future__ import annotations

import click

from ...protocols.peer import AbsentPeer, FleetVms
from ...protocols.vm import Vm
from ..exchange import list_request, plain
from .listing import Listing, listing_options
from .node import open_client
from .output import Column, cell, duration, print_fields, say
from .parameters import VM_NAME, json_option, peer_option

COLUMNS: list[Column] = [
    ("NAME", lambda vm: vm.name),
    ("STATUS", lambda vm: vm.status),
    ("CPU", lambda vm: vm.cpu_cores),
    ("MEMORY", lambda vm: f"{vm.memory} MiB"),
    ("DISK", lambda vm: f"{vm.disk_size} GiB"),
    ("IP", lambda vm: vm.ip),
    ("UPTIME", lambda vm: duration(vm.uptime)),
    ("IMAGE", lambda vm: vm.image),
]
FLEET_COLUMNS: list[Column] = [
    ("NODE", lambda vm: vm.node),
    COLUMNS[0],
    ("STATUS", lambda vm: vm.status if vm.reachable else f"{vm.status}, node unreachable"),
    *COLUMNS[2:],
]
FIELDS: list[Column] = [
    ("name", lambda vm: vm.name),
    ("id", lambda vm: vm.id),
    ("status", lambda vm: vm.status),
    ("reason", lambda vm: vm.reason),
    ("node", lambda vm: vm.node),
    ("image", lambda vm: vm.image),
    ("cpu cores", lambda vm: vm.cpu_cores),
    ("memory", lambda vm: f"{vm.memory} MiB"),
    ("disk", lambda vm: f"{vm.disk_size} GiB"),
    ("hypervisor", lambda vm: vm.hypervisor),
    ("firmware", lambda vm: vm.firmware),
    ("network", lambda vm: vm.network),
    ("ip", lambda vm: vm.ip),
    ("ports", lambda vm: ", ".join(map(str, vm.ports)) or None),
    ("guest ip", lambda vm: vm.guest_ip),
    ("mac", lambda vm: vm.mac),
    ("vnc", lambda vm: vm.vnc_port and f"127.0.0.1:{vm.vnc_port}"),
    ("uptime", lambda vm: duration(vm.uptime)),
    ("created", lambda vm: vm.created_at),
    ("expires", lambda vm: vm.expires_at),
    ("owner", lambda vm: vm.owner),
    ("autostart", lambda vm: vm.autostart or None),
    ("labels", lambda vm: vm.labels),
]


@click.command("ls")
@click.option("--fleet", is_flag=True, help="The VMs of every known peer; of one that is away, its last answer.")
@peer_option
@listing_options
def list_vms(fleet: bool, peer: str | None, listing: Listing) -> None:
    """List VMs."""
    if fleet and peer is not None:
        raise click.UsageError("--fleet already lists every peer; leave out --on")
    with open_client() as client:
        if fleet:
            found = listing.fetch(client, plain("GET", "/fleet/vm", FleetVms))
            listing.show(found.vms, FLEET_COLUMNS)
            for absent in found.unreachable:
                say(_absence(absent))
        else:
            listing.show(listing.fetch(client, list_request("list_vms", peer), peer).vms, COLUMNS)


def _absence(peer: AbsentPeer) -> str:
    """Return what is missing in a list of the fleet."""
    if peer.observed_at is None:
        return f"warning: {peer.name} could not be asked ({peer.reason}); it has never listed its VMs to this node"
    return f"warning: {peer.name} could not be asked ({peer.reason}); its VMs are shown as of {cell(peer.observed_at)}"


@click.command("show")
@click.argument("name", type=VM_NAME)
@peer_option
@json_option
def show_vm(name: str, peer: str | None, as_json: bool) -> None:
    """Show one VM."""
    with open_client() as client:
        found = client.call("get_vm", {"vm": name}, peer)
    print_fields(found, FIELDS, as_json=as_json)
    print_warnings(found)


def print_warnings(vm: Vm) -> None:
    for warning in vm.warnings:
        say(f"warning: {warning}")
