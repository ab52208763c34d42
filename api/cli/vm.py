"""`twinshare vm`: virtual machines, here or on a peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ...protocols.bodies import VmList
from ...protocols.vm import ForwardSpec, Vm, VmChange
from ..exchange import plain
from .link import open_link
from .names import KEY_VALUE, VM_NAME
from .output import Column, duration, json_option, peer_option, print_fields, print_json, print_table, say
from .progress import run
from .specs import read_spec, spec_options
from .vm_look import console, console_log, ip, screenshot, stats
from .vm_ports import forward, forwards, unforward

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
    ("network", lambda vm: vm.network),
    ("ip", lambda vm: vm.ip),
    ("vnc", lambda vm: vm.vnc_port and f"127.0.0.1:{vm.vnc_port}"),
    ("uptime", lambda vm: duration(vm.uptime)),
    ("created", lambda vm: vm.created_at),
    ("owner", lambda vm: vm.owner),
    ("autostart", lambda vm: vm.autostart or None),
    ("labels", lambda vm: vm.labels),
]


@click.group()
def vm() -> None:
    """Virtual machines.

    \b
    twinshare vm create web --image tiny --memory 128 --disk 1 --start
    twinshare vm forward web 8080:80
    twinshare vm ls --on alice
    """


for _part in (console, console_log, ip, stats, screenshot, forward, forwards, unforward):
    vm.add_command(_part)


@vm.command("ls")
@click.option("--fleet", is_flag=True, help="The VMs of every known peer; of one that is away, what it last told.")
@peer_option
@json_option
def list_vms(fleet: bool, peer: str | None, as_json: bool) -> None:
    """List VMs."""
    if fleet and peer is not None:
        raise click.UsageError("--fleet already lists every peer; leave out --on")
    with open_link() as link:
        if fleet:
            print_table(link.send(plain("GET", "/fleet/vm", VmList)).vms, FLEET_COLUMNS, as_json=as_json)
        else:
            print_table(link.call("list_vms", {}, peer), COLUMNS, as_json=as_json)


@vm.command("show")
@click.argument("name", type=VM_NAME)
@peer_option
@json_option
def show_vm(name: str, peer: str | None, as_json: bool) -> None:
    """Show one VM."""
    with open_link() as link:
        found = link.call("get_vm", {"vm": name}, peer)
    print_fields(found, FIELDS, as_json=as_json)
    _warn(found)


@vm.command("create")
@click.argument("name")
@click.option("--image", required=True, help="The image to boot: NAME, NAME:TAG or REGISTRY/NAME:TAG.")
@spec_options
@click.option("--start", is_flag=True, help="Start it now.")
@peer_option
@json_option
def create_vm(name: str, peer: str | None, as_json: bool, ports: list[ForwardSpec], **given: Any) -> None:
    """Create a VM from an image.

    \b
    twinshare vm create web --image tiny --cpu 1 --memory 128 --disk 1 --start --forward 8080:80
    twinshare vm create db --image debian-12 --ssh-key ~/.ssh/id_ed25519.pub --user-data setup.yaml
    """
    spec = read_spec(name, given)
    with open_link() as link:
        made: Vm = run(link, "create_vm", {"spec": spec}, peer)
        for port in ports:
            link.call("add_forward", {"vm": made.id, "forward": port}, peer)
    _told(made, as_json=as_json)
    _warn(made)


@vm.command("set")
@click.argument("name", type=VM_NAME)
@click.option("--autostart/--no-autostart", default=None, help="Whether it starts when the machine boots.")
@click.option("--label", "labels", type=KEY_VALUE, multiple=True, help="K=V; an empty V takes the label away.")
@peer_option
@json_option
def set_vm(name: str, autostart: bool | None, labels: list[tuple[str, str]], peer: str | None, as_json: bool) -> None:
    """Change a VM's autostart or labels."""
    if autostart is None and not labels:
        raise click.UsageError("say what to change: --autostart, --no-autostart or --label")
    with open_link() as link:
        merged: dict[str, str] | None = None
        if labels:
            known = link.call("get_vm", {"vm": name}, peer).labels
            merged = {key: value for key, value in {**known, **dict(labels)}.items() if value}
        change = VmChange(autostart=autostart, labels=merged)
        _told(run(link, "update_vm", {"vm": name, "change": change}, peer), as_json=as_json)


def _each(names: tuple[str, ...], act: Callable[[str], Vm], *, as_json: bool) -> None:
    """One after the other, each told when it is done; as JSON one document: the VM, or a list of several."""
    done: list[Vm] = []
    for name in names:
        done.append(act(name))
        if not as_json:
            _told(done[-1], as_json=False)
    if as_json:
        print_json(done if len(names) > 1 else done[0])


def _action(command: str, method: str, summary: str) -> None:
    """A command that does one thing to each VM that is named."""

    @vm.command(command, help=summary)
    @click.argument("names", nargs=-1, required=True, type=VM_NAME)
    @peer_option
    @json_option
    def act(names: tuple[str, ...], peer: str | None, as_json: bool) -> None:
        with open_link() as link:
            _each(names, lambda name: run(link, method, {"vm": name}, peer), as_json=as_json)


_action("start", "start_vm", "Start VMs; one that runs stays as it is.")
_action("pause", "pause_vm", "Hold VMs' CPUs.")
_action("resume", "resume_vm", "Let paused VMs go on.")


def _halting(command: str, method: str, summary: str) -> None:
    @vm.command(command, help=summary)
    @click.argument("names", nargs=-1, required=True, type=VM_NAME)
    @click.option("--force", "-f", is_flag=True, help="Pull the plug.")
    @click.option(
        "--timeout", type=click.IntRange(1, 3600), metavar="SECONDS", help="How long the guest may take (60)."
    )
    @peer_option
    @json_option
    def halt(names: tuple[str, ...], force: bool, timeout: int | None, peer: str | None, as_json: bool) -> None:
        more = {"force": force, "timeout": timeout}
        with open_link() as link:
            _each(names, lambda name: run(link, method, {"vm": name, **more}, peer), as_json=as_json)


_halting("stop", "stop_vm", "Shut VMs down.")
_halting("restart", "restart_vm", "Shut VMs down and start them again.")


@vm.command("rm")
@click.argument("names", nargs=-1, required=True, type=VM_NAME)
@click.option("--force", "-f", is_flag=True, help="Also those that run.")
@click.option("--keep-disk", is_flag=True, help="Leave the disk where it is.")
@peer_option
def remove_vm(names: tuple[str, ...], force: bool, keep_disk: bool, peer: str | None) -> None:
    """Delete VMs with their disks."""
    with open_link() as link:
        for name in names:
            gone = run(link, "delete_vm", {"vm": name, "delete_disk": not keep_disk, "force": force}, peer)
            click.echo(f"{gone.name} deleted")


def _told(found: Vm, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found.name} {found.status}")


def _warn(found: Vm) -> None:
    for warning in found.warnings:
        say(f"warning: {warning}")
