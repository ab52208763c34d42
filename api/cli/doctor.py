"""`twinshare doctor`: what is missing or unsafe on this machine, and the command that mends it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ...agent.config import ConfigError, load_config
from ...protocols.errors import TwinshareError
from .checks import Check, State, check_machine
from .node import data_dirs, open_client
from .orphans import find_orphans
from .output import print_json, say
from .parameters import json_option


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check this machine; exit 0 if a VM could run here.

    Exit code 3 says that something must be installed first.
    """
    try:
        config = load_config()
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    data_dir = data_dirs()[0]
    checks = list(check_machine(config, data_dir))
    checks += _reported_by_node(checks, data_dir)
    if as_json:
        print_json(checks)
    else:
        for check in checks:
            click.echo(f"{check.state:8} {check.name}: {check.found}")
            if check.cure and check.state is not State.OK:
                click.echo(f"{'':8}   -> {check.cure}")
    packages = [check.package for check in checks if check.package]
    if packages:
        sudo = "" if os.geteuid() == 0 else "sudo "
        say(f"install: {sudo}apt-get install -y --no-install-recommends {' '.join(packages)}")
    states = {check.state for check in checks}
    if State.MISSING in states or State.BROKEN in states:
        raise click.exceptions.Exit(3 if State.MISSING in states else 1)


def _reported_by_node(checks: list[Check], data_dir: Path) -> list[Check]:
    """Return the problems that the running node reports, and what lies in its directory and belongs to no VM of it."""
    if not any(check.name == "agent" and check.state is State.OK for check in checks):
        return []
    try:
        with open_client() as client:
            health, vms = client.call("health"), client.call("list_vms")
    except TwinshareError as error:
        return [Check("agent", State.BROKEN, error.message)]
    orphans = find_orphans(data_dir, {vm.id for vm in vms})
    return [*(Check("agent", State.NOTE, problem) for problem in health.problems), *orphans]
