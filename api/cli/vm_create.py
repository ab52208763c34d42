"""`twinshare vm create`, `set`, and the options that describe a VM, which `image run` has too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import click
import msgspec

from ...protocols.errors import InvalidRequest
from ...protocols.reading import decode_json
from ...protocols.vm import Vm, VmChange, VmSpec
from .node import open_client
from .output import print_json
from .parameters import (
    DISK,
    DURATION,
    IMAGE_SOURCE,
    KEY_VALUE,
    MEMORY,
    NETWORK_NAME,
    PORTS,
    VM_NAME,
    json_option,
    peer_option,
)
from .progress import run
from .vm_list import print_warnings

Command = TypeVar("Command", bound=Callable[..., Any])

_GZIP = b"\x1f\x8b"
_OPTIONS = (
    click.option("--cpu", "cpu_cores", type=click.IntRange(1), help="CPU cores (2)."),
    click.option("--memory", type=MEMORY, help="Memory, such as 512M or 2G; a plain number is MiB (2048)."),
    click.option("--disk", "disk_size", type=DISK, help="Disk, such as 20G; a plain number is GiB (20)."),
    click.option("--network", type=NETWORK_NAME, help="Network (default)."),
    click.option("--hypervisor", type=click.Choice(["kvm", "qemu"]), help="kvm, or qemu for emulation."),
    click.option("--firmware", type=click.Choice(["bios", "uefi"]), help="Firmware (what the image needs)."),
    click.option("--mac", help="MAC address of its network card (the node chooses one)."),
    click.option(
        "--user-data", type=click.File("rb"), help="cloud-config or script for the first boot; - reads stdin."
    ),
    click.option("--network-config", type=click.File("rb"), help="cloud-init network configuration, version 2."),
    click.option("--ssh-key", "ssh_keys", type=click.File("rb"), multiple=True, help="Public key file; repeatable."),
    click.option("--hostname", help="The guest's host name (the VM's name)."),
    click.option("--label", "labels", type=KEY_VALUE, multiple=True, help="K=V; repeatable."),
    click.option("--forward", "forwards", type=PORTS, multiple=True, help="HOST:GUEST port; repeatable."),
    click.option("--ttl", type=DURATION, help="Delete the VM after so long, such as 2h."),
    click.option("--autostart", is_flag=True, help="Start the VM when the machine boots."),
)


def spec_options(command: Command) -> Command:
    """Give a command these options; `read_spec` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_spec(name: str, given: dict[str, Any]) -> VmSpec:
    """Return the spec that the options describe; files are read here, on the caller's side.

    Raises: InvalidRequest naming what the node would refuse.
    """
    cloud_init: dict[str, Any] = {}
    for field in ("user_data", "network_config"):
        if (file := given.pop(field)) is not None:
            cloud_init[field] = _read_text(file, field)
    lines = [line.strip() for file in given.pop("ssh_keys") for line in _read_text(file, "ssh_key").splitlines()]
    if keys := [line for line in lines if line and line[0] != "#"]:
        cloud_init["ssh_authorized_keys"] = keys
    if hostname := given.pop("hostname"):
        cloud_init["hostname"] = hostname
    fields = {"name": name, **given, "labels": dict(given["labels"]), "cloud_init": cloud_init or None}
    fields = {key: value for key, value in fields.items() if value is not None}
    found: VmSpec = decode_json(msgspec.json.encode(fields), VmSpec)
    return found


def _read_text(file: BinaryIO, field: str) -> str:
    option = f"--{field.replace('_', '-')}"
    try:
        content = file.read()
        if content.startswith(_GZIP):
            raise InvalidRequest(f"{option}: {file.name} is compressed with gzip; unpack it first", path=field)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"{option}: {file.name} is not text in UTF-8 (byte {error.start}); convert it first"
        raise InvalidRequest(message, path=field) from None
    except OSError as error:
        raise InvalidRequest(f"{option}: {file.name} cannot be read: {error.strerror}", path=field) from None


@click.command("create")
@click.argument("name")
@click.option(
    "--image", required=True, type=IMAGE_SOURCE, help="The image to boot: NAME, NAME:TAG or REGISTRY/NAME:TAG."
)
@spec_options
@click.option("--start", is_flag=True, help="Start it now.")
@peer_option
@json_option
def create_vm(name: str, peer: str | None, as_json: bool, **given: Any) -> None:
    """Create a VM from an image.

    \b
    twinshare vm create web --image tiny --cpu 1 --memory 128M --disk 1G --start --forward 8080:80
    twinshare vm create db --image debian-12 --ssh-key ~/.ssh/id_ed25519.pub --user-data setup.yaml
    """
    spec = read_spec(name, given)
    with open_client() as client:
        made: Vm = run(client, "create_vm", {"spec": spec}, peer)
    print_vm(made, as_json=as_json)
    print_warnings(made)


@click.command("set")
@click.argument("name", type=VM_NAME)
@click.option("--autostart/--no-autostart", default=None, help="Whether it starts when the machine boots.")
@click.option("--label", "labels", type=KEY_VALUE, multiple=True, help="K=V; an empty V removes the label.")
@click.option("--ttl", type=DURATION, help="Delete it so long from now, such as 2h; 0 for no end.")
@peer_option
@json_option
def set_vm(
    name: str,
    autostart: bool | None,
    labels: list[tuple[str, str]],
    ttl: int | None,
    peer: str | None,
    as_json: bool,
) -> None:
    """Change a VM's autostart, labels or time to live."""
    if autostart is None and ttl is None and not labels:
        raise click.UsageError("say what to change: --autostart, --no-autostart, --label or --ttl")
    with open_client() as client:
        merged: dict[str, str] | None = None
        if labels:
            known = client.call("get_vm", {"vm": name}, peer).labels
            merged = {key: value for key, value in {**known, **dict(labels)}.items() if value}
        change = VmChange(autostart=autostart, labels=merged, ttl=ttl)
        print_vm(run(client, "update_vm", {"vm": name, "change": change}, peer), as_json=as_json)


def print_vm(vm: Vm, *, as_json: bool) -> None:
    if as_json:
        print_json(vm)
    else:
        click.echo(f"{vm.name} {vm.status}")
