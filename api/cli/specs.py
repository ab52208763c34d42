"""What a VM is to be, on the command line: the options that `vm create` and `image run` have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from ...protocols.reading import decode_json
from ...protocols.vm import VmSpec
from .names import KEY_VALUE, PORTS

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--cpu", "cpu_cores", type=click.IntRange(1), help="CPU cores (2)."),
    click.option("--memory", type=click.IntRange(64), metavar="MIB", help="Memory in MiB (2048)."),
    click.option("--disk", "disk_size", type=click.IntRange(1), metavar="GIB", help="Disk in GiB (20)."),
    click.option("--network", help="Network (default)."),
    click.option("--hypervisor", type=click.Choice(["kvm", "qemu"]), help="kvm, or qemu for emulation."),
    click.option("--user-data", type=click.File("r"), help="cloud-config or script for the first boot; - reads stdin."),
    click.option("--network-config", type=click.File("r"), help="cloud-init network configuration, version 2."),
    click.option("--ssh-key", "ssh_keys", type=click.File("r"), multiple=True, help="Public key file; repeatable."),
    click.option("--hostname", help="The guest's host name (the VM's name)."),
    click.option("--label", "labels", type=KEY_VALUE, multiple=True, help="K=V; repeatable."),
    click.option("--forward", "ports", type=PORTS, multiple=True, help="HOST:GUEST port; repeatable."),
    click.option("--autostart", is_flag=True, help="Start the VM when the machine boots."),
)


def spec_options(command: Command) -> Command:
    """Give a command these options; `read_spec` takes what they were given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_spec(name: str, given: dict[str, Any]) -> VmSpec:
    """Files are read here, on the caller's side. Raises: InvalidRequest naming what the node would refuse."""
    cloud_init: dict[str, Any] = {}
    for field in ("user_data", "network_config"):
        if (file := given.pop(field)) is not None:
            cloud_init[field] = file.read()
    keys = [line.strip() for file in given.pop("ssh_keys") for line in file if line.strip() and line[0] != "#"]
    if keys:
        cloud_init["ssh_authorized_keys"] = keys
    if hostname := given.pop("hostname"):
        cloud_init["hostname"] = hostname
    fields = {"name": name, **given, "labels": dict(given["labels"]), "cloud_init": cloud_init or None}
    fields = {key: value for key, value in fields.items() if value is not None}
    found: VmSpec = decode_json(msgspec.json.encode(fields), VmSpec)
    return found
