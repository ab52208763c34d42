"""`twinshare image pull`, `push`, `catalogue`, `run`: images of registries, and VMs from them."""

from __future__ import annotations

import secrets
import time
from typing import Any

import click
import msgspec

from ...protocols.errors import TwinshareError
from ...protocols.image import Image, PullRequest, PushRequest, RegistryCredentials
from ...protocols.reference import LOCAL, parse_reference, vm_name_after
from ...protocols.vm import Vm
from .listing import Listing, listing_options
from .node import open_client
from .output import Column, print_json, say
from .parameters import IMAGE_NAME, IMAGE_SOURCE, json_option, peer_option
from .progress import run
from .vm_access import wait_for_ip
from .vm_create import read_spec, spec_options
from .vm_list import print_warnings

CATALOGUE: list[Column] = [
    ("NAME", lambda entry: entry.name),
    ("USER", lambda entry: entry.user),
    ("ABOUT", lambda entry: entry.about or entry.source),
]
raw_option = click.option("--raw", is_flag=True, help="Take it for a raw disk though it cannot be recognised as one.")
BOOT_TIMEOUT = 300
"""Seconds that `image run` waits for a guest's address."""


login_option = click.option(
    "--login", is_flag=True, help="Send the login that docker's configuration here has for the registry."
)


def own_login(ref: str) -> RegistryCredentials:
    """Return the login of this user at the registry of an image's name. Raises: UsageError when there is none."""
    from ...agent.images.registry.auth import docker_credentials, registry_host

    registry = parse_reference(ref).registry
    found = docker_credentials(registry_host(registry))
    if found is None:
        raise click.UsageError(
            f"docker's configuration here has no login for '{registry}'; run: docker login {registry}"
        )
    return RegistryCredentials(registry=registry, username=found.username, password=found.password)


def full_name(image: Image) -> str:
    """Return an image's whole name here; one that lost its name is its digest."""
    registry = "" if image.registry == LOCAL else f"{image.registry}/"
    return f"{registry}{image.name}:{image.tag}" if image.name else image.digest


def print_image(made: Image, *, as_json: bool) -> None:
    """Print the image that a command made."""
    if as_json:
        print_json(made)
    else:
        click.echo(f"{full_name(made)} {made.digest}")


@click.command("pull")
@click.argument("source", metavar="IMAGE", type=IMAGE_SOURCE)
@click.option("--name", default="", metavar="NAME[:TAG]", help="Its name here (as it is there).")
@click.option("--sha256", default="", metavar="HEX", help="The digest of a disk that is fetched by https.")
@raw_option
@login_option
@peer_option
@json_option
def pull(source: str, name: str, sha256: str, raw: bool, login: bool, peer: str | None, as_json: bool) -> None:
    """Fetch an image from the fleet, the catalogue, a registry or an https address.

    \b
    twinshare image pull debian-12
    twinshare image pull ghcr.io/org/web:v1
    twinshare image pull https://example.org/disk.qcow2 --sha256 5891b5b5...
    """
    credentials = own_login(source) if login else None
    wanted = PullRequest(image=source, name=name, sha256=sha256, raw=raw, credentials=credentials)
    with open_client() as client:
        print_image(run(client, "pull_image", {"request": wanted}, peer), as_json=as_json)


@click.command("push")
@click.argument("name", type=IMAGE_NAME)
@click.argument("target", metavar="REGISTRY/NAME[:TAG]")
@click.option("--dry-run", is_flag=True, help="Only check whether the registry would accept it.")
@login_option
@peer_option
@json_option
def push(name: str, target: str, dry_run: bool, login: bool, peer: str | None, as_json: bool) -> None:
    """Send an image to a registry."""
    credentials = own_login(target) if login else None
    wanted = PushRequest(image=name, target=target, dry_run=dry_run, credentials=credentials)
    with open_client() as client:
        pushed = run(client, "push_image", {"request": wanted}, peer)
    if as_json:
        print_json(pushed)
    elif pushed.manifest:
        click.echo(f"{pushed.target} {pushed.manifest}")
    else:
        say(f"{pushed.target} would be taken")


@click.command("catalogue")
@peer_option
@listing_options
def catalogue(peer: str | None, listing: Listing) -> None:
    """List the short names that can be pulled and run."""
    with open_client() as client:
        listing.show(client.call("list_catalogue", {}, peer), CATALOGUE)


@click.command("run")
@click.argument("image", type=IMAGE_SOURCE)
@click.option("--name", metavar="NAME", help="The VM's name (made of the image's).")
@spec_options
@peer_option
@json_option
def run_image(image: str, name: str | None, peer: str | None, as_json: bool, **given: Any) -> None:
    """Make a VM from an image, fetched if need be, start it, and print its name and IP address.

    \b
    twinshare image run tiny --memory 128M --disk 1G
    twinshare image run debian-12 --name db --ssh-key ~/.ssh/id_ed25519.pub --forward 2222:22
    """
    spec = read_spec(name or vm_name_after(image, secrets.token_hex(3)), {**given, "image": image, "start": True})
    with open_client() as client:
        made: Vm = run(client, "create_vm", {"spec": spec}, peer)
        print_warnings(made)
        say(f"{made.name} runs; waiting for its address")
        found = wait_for_ip(client, made.id, peer, time.monotonic() + BOOT_TIMEOUT)
    if found.ip is None:
        raise TwinshareError(f"VM '{made.name}' runs, and has no address that the node knows of after {BOOT_TIMEOUT} s")
    if as_json:
        print_json(msgspec.structs.replace(made, ip=found.ip))
    else:
        click.echo(f"{made.name} {found.ip}")
