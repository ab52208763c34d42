"""`twinshare image`: the disks that VMs start from."""

from __future__ import annotations

from typing import BinaryIO, cast

import click

from ...protocols.image import Image
from ..exchange import list_request, upload
from .bulk import do_each
from .image_registry import catalogue, full_name, print_image, pull, push, raw_option, run_image
from .listing import Listing, listing_options
from .node import open_client
from .output import Column, print_fields, print_json, say, size
from .parameters import IMAGE_NAME, VM_NAME, json_option, peer_option
from .progress import counted, run

COLUMNS: list[Column] = [
    ("NAME", lambda image: image.name),
    ("TAG", lambda image: image.tag),
    ("SIZE", lambda image: size(image.size)),
    ("ON DISK", lambda image: size(image.allocated)),
    ("CREATED", lambda image: image.created_at),
    ("STATE", lambda image: "damaged" if image.damaged else "whole"),
    ("USED BY", lambda image: image.used_by),
]
FIELDS: list[Column] = [
    ("name", full_name),
    ("registry", lambda image: image.registry),
    ("digest", lambda image: image.digest),
    ("size", lambda image: size(image.size)),
    ("on disk", lambda image: size(image.allocated)),
    ("source", lambda image: image.source),
    ("created", lambda image: image.created_at),
    ("used by", lambda image: image.used_by),
    ("labels", lambda image: image.labels),
    ("damaged", lambda image: "yes" if image.damaged else ""),
]


@click.group()
def image() -> None:
    """Images: the disks that VMs start from.

    \b
    twinshare image run debian-12                      fetched, started, its address printed
    twinshare image build-tiny                         a guest of a few MB, to try things with
    twinshare image import debian-12.qcow2 debian:12   a disk of this machine
    twinshare image create web:v1 --from-vm web        the disk of a VM
    """


for _part in (pull, push, catalogue, run_image):
    image.add_command(_part)


@image.command("ls")
@peer_option
@listing_options
def list_images(peer: str | None, listing: Listing) -> None:
    """List images."""
    with open_client() as client:
        listing.show(listing.fetch(client, list_request("list_images", peer), peer).images, COLUMNS)


@image.command("show")
@click.argument("name", type=IMAGE_NAME)
@peer_option
@json_option
def show_image(name: str, peer: str | None, as_json: bool) -> None:
    """Show one image."""
    with open_client() as client:
        print_fields(client.call("get_image", {"image": name}, peer), FIELDS, as_json=as_json)


@image.command("import")
@click.argument("file", type=click.File("rb"))
@click.argument("name", metavar="NAME[:TAG]")
@raw_option
@json_option
def import_image(file: BinaryIO, name: str, raw: bool, as_json: bool) -> None:
    """Send a qcow2 or raw disk of this machine to the node; - reads stdin."""
    with open_client() as client:
        print_image(cast("Image", client.send(upload(name, raw=raw), counted(file, name))), as_json=as_json)


@image.command("build-tiny")
@peer_option
@json_option
def build_tiny(peer: str | None, as_json: bool) -> None:
    """Make tiny:latest from the distribution's packages: a few MB, boots in seconds, answers HTTP."""
    with open_client() as client:
        print_image(run(client, "build_tiny", {}, peer), as_json=as_json)


@image.command("create")
@click.argument("name", metavar="NAME[:TAG]")
@click.option("--from-vm", "vm", required=True, type=VM_NAME, metavar="VM", help="The VM whose disk it is; it may run.")
@click.option("--reset-identity", is_flag=True, help="Take the machine id and the SSH host keys out of the image.")
@peer_option
@json_option
def create_image(name: str, vm: str, reset_identity: bool, peer: str | None, as_json: bool) -> None:
    """Make an image of a VM's disk."""
    wanted = {"vm": vm, "name": name, "reset_identity": reset_identity}
    with open_client() as client:
        print_image(run(client, "capture_image", wanted, peer), as_json=as_json)


@image.command("prune")
@click.option("--all", "everything", is_flag=True, help="Named images too; without it, those that lost their names.")
@click.option("--dry-run", is_flag=True, help="Show what would be removed.")
@peer_option
@json_option
def prune_images(everything: bool, dry_run: bool, peer: str | None, as_json: bool) -> None:
    """Remove images that no VM uses."""
    with open_client() as client:
        gone = run(client, "prune_images", {"all": everything, "dry_run": dry_run}, peer)
    if as_json:
        print_json(gone)
        return
    for image in gone.images:
        click.echo(f"{full_name(image)} {size(image.allocated)}")
    say(f"{size(gone.freed)} {'would be' if dry_run else 'are'} free")


@image.command("fsck")
@peer_option
@json_option
def fsck_images(peer: str | None, as_json: bool) -> None:
    """Check every image, repair what is kept beside them, and exit 1 if one is damaged."""
    with open_client() as client:
        checked = run(client, "fsck_images", {}, peer)
    if as_json:
        print_json(checked)
    else:
        for finding in checked.findings:
            click.echo(f"{'mended' if finding.mended else 'DAMAGE'}: {finding.message}")
        say(f"images read: {checked.images}, {size(checked.bytes)}")
    if not all(finding.mended for finding in checked.findings):
        raise click.exceptions.Exit(1)


@image.command("rm")
@click.argument("names", nargs=-1, required=True, type=IMAGE_NAME)
@peer_option
@json_option
def remove_image(names: tuple[str, ...], peer: str | None, as_json: bool) -> None:
    """Remove images that no VM uses."""
    with open_client() as client:
        do_each(
            names,
            lambda name: run(client, "remove_image", {"image": name}, peer),
            lambda image: f"{full_name(image)} removed",
            as_json=as_json,
        )
