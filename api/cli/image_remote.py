"""`twinshare image pull`, `push`, `catalogue`, `run`: images of registries, and VMs from them."""

from __future__ import annotations

import secrets
import time
from typing import Any

import click
import msgspec

from ...protocols.errors import TwinshareError
from ...protocols.image import Image, PullRequest, PushRequest
from ...protocols.reference import LOCAL, vm_name_after
from ...protocols.vm import ForwardSpec, Vm
from .link import open_link
from .names import IMAGE_NAME
from .output import Column, json_option, peer_option, print_json, print_table, say
from .progress import run
from .specs import read_spec, spec_options
from .vm_look import wait_for_ip

CATALOGUE: list[Column] = [
    ("NAME", lambda entry: entry.name),
    ("USER", lambda entry: entry.user),
    ("ABOUT", lambda entry: entry.about or entry.source),
]
# Seconds that a guest may take to boot before nobody waits for its address any more.
BOOT_WITHIN = 300


def called(image: Image) -> str:
    """An image's whole name here; one that lost its name is its digest."""
    place = "" if image.registry == LOCAL else f"{image.registry}/"
    return f"{place}{image.name}:{image.tag}" if image.name else image.digest


def told(made: Image, *, as_json: bool) -> None:
    """What a command that makes an image prints."""
    if as_json:
        print_json(made)
    else:
        click.echo(f"{called(made)} {made.digest}")


@click.command("pull")
@click.argument("source", metavar="IMAGE")
@click.option("--name", default="", metavar="NAME[:TAG]", help="What it is called here (as it is there).")
@click.option("--sha256", default="", metavar="HEX", help="The digest of a disk that is fetched by https.")
@peer_option
@json_option
def pull(source: str, name: str, sha256: str, peer: str | None, as_json: bool) -> None:
    """Fetch an image from the fleet, the catalogue, a registry or an https address.

    \b
    twinshare image pull debian-12
    twinshare image pull ghcr.io/org/web:v1
    twinshare image pull https://example.org/disk.qcow2 --sha256 5891b5b5...
    """
    wanted = PullRequest(image=source, name=name, sha256=sha256)
    with open_link() as link:
        told(run(link, "pull_image", {"request": wanted}, peer), as_json=as_json)


@click.command("push")
@click.argument("name", type=IMAGE_NAME)
@click.argument("target", metavar="REGISTRY/NAME[:TAG]")
@click.option("--dry-run", is_flag=True, help="Only try whether the registry would take it.")
@peer_option
@json_option
def push(name: str, target: str, dry_run: bool, peer: str | None, as_json: bool) -> None:
    """Send an image to a registry."""
    wanted = PushRequest(image=name, target=target, dry_run=dry_run)
    with open_link() as link:
        pushed = run(link, "push_image", {"request": wanted}, peer)
    if as_json:
        print_json(pushed)
    elif pushed.manifest:
        click.echo(f"{pushed.target} {pushed.manifest}")
    else:
        say(f"{pushed.target} would be taken")


@click.command("catalogue")
@peer_option
@json_option
def catalogue(peer: str | None, as_json: bool) -> None:
    """List the short names that can be pulled and run."""
    with open_link() as link:
        print_table(link.call("list_catalogue", {}, peer), CATALOGUE, as_json=as_json)


@click.command("run")
@click.argument("image", type=IMAGE_NAME)
@click.option("--name", metavar="NAME", help="The VM's name (made of the image's).")
@spec_options
@peer_option
@json_option
def run_image(
    image: str, name: str | None, peer: str | None, as_json: bool, ports: list[ForwardSpec], **given: Any
) -> None:
    """Make a VM from an image, fetched if need be, start it, and print its name and IP address.

    \b
    twinshare image run tiny --memory 128 --disk 1
    twinshare image run debian-12 --name db --ssh-key ~/.ssh/id_ed25519.pub --forward 2222:22
    """
    spec = read_spec(name or vm_name_after(image, secrets.token_hex(3)), {**given, "image": image, "start": True})
    with open_link() as link:
        made: Vm = run(link, "create_vm", {"spec": spec}, peer)
        for warning in made.warnings:
            say(f"warning: {warning}")
        for port in ports:
            link.call("add_forward", {"vm": made.id, "forward": port}, peer)
        say(f"{made.name} runs; waiting for its address")
        found = wait_for_ip(link, made.id, peer, time.monotonic() + BOOT_WITHIN)
    if found.ip is None:
        raise TwinshareError(f"VM '{made.name}' runs, and has no address that the node knows of after {BOOT_WITHIN} s")
    if as_json:
        print_json(msgspec.structs.replace(made, ip=found.ip))
    else:
        click.echo(f"{made.name} {found.ip}")
