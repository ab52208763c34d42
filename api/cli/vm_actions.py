"""`twinshare vm start`, `stop`, `restart`, `pause`, `resume`, `rm`: one action on each VM that is named."""

from __future__ import annotations

from typing import Any

import click

from ...protocols.errors import DeadlineExceeded, WrongState
from .bulk import do_each
from .node import NodeClient, open_client
from .parameters import VM_NAME, json_option, peer_option
from .progress import run
from .vm_list import print_warnings

_STARTING = ("start_vm", "restart_vm")


def _act(names: tuple[str, ...], method: str, peer: str | None, *, as_json: bool, done: str = "", **more: Any) -> None:
    with open_client() as client:
        do_each(
            names,
            lambda name: _run(client, method, {"vm": name, **more}, peer),
            lambda vm: f"{vm.name} {done or vm.status}",
            as_json=as_json,
        )


def _run(client: NodeClient, method: str, arguments: dict[str, Any], peer: str | None) -> Any:
    try:
        vm = run(client, method, arguments, peer)
    except (WrongState, DeadlineExceeded) as error:
        if arguments.get("force") is False and "force it" in error.message:
            error.message += " (--force)"
        raise
    if method in _STARTING:
        print_warnings(vm)
    return vm


def _action(command: str, method: str, summary: str) -> click.Command:
    @click.command(command, help=summary)
    @click.argument("names", nargs=-1, required=True, type=VM_NAME)
    @peer_option
    @json_option
    def act(names: tuple[str, ...], peer: str | None, as_json: bool) -> None:
        _act(names, method, peer, as_json=as_json)

    return act


start = _action("start", "start_vm", "Start VMs. One that runs stays as it is.")
pause = _action("pause", "pause_vm", "Pause VMs.")
resume = _action("resume", "resume_vm", "Resume paused VMs.")


def _halt(command: str, method: str, summary: str) -> click.Command:
    @click.command(command, help=summary)
    @click.argument("names", nargs=-1, required=True, type=VM_NAME)
    @click.option("--force", "-f", is_flag=True, help="Force power off.")
    @click.option(
        "--timeout", type=click.IntRange(1, 3600), metavar="SECONDS", help="How long the guest may take (60)."
    )
    @peer_option
    @json_option
    def halt(names: tuple[str, ...], force: bool, timeout: int | None, peer: str | None, as_json: bool) -> None:
        _act(names, method, peer, as_json=as_json, force=force, timeout=timeout)

    return halt


stop = _halt("stop", "stop_vm", "Shut VMs down.")
restart = _halt("restart", "restart_vm", "Shut VMs down and start them again.")


@click.command("rm")
@click.argument("names", nargs=-1, required=True, type=VM_NAME)
@click.option("--force", "-f", is_flag=True, help="Also those that run.")
@click.option("--keep-disk", is_flag=True, help="Leave the disk where it is.")
@peer_option
@json_option
def remove(names: tuple[str, ...], force: bool, keep_disk: bool, peer: str | None, as_json: bool) -> None:
    """Delete VMs with their disks."""
    _act(names, "delete_vm", peer, as_json=as_json, done="deleted", delete_disk=not keep_disk, force=force)
