"""`twinshare image`: the disks that VMs start from."""

from __future__ import annotations

from typing import BinaryIO, cast

import click

from ...protocols.image import Image
from ..exchange import upload
from .image_remote import called, catalogue, pull, push, run_image, told
from .link import open_link
from .names import IMAGE_NAME, VM_NAME
from .output import Column, json_option, peer_option, print_fields, print_json, print_table, say, size
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
    ("name", called),
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
@json_option
def list_images(peer: str | None, as_json: bool) -> None:
    """List images."""
    with open_link() as link:
        print_table(link.call("list_images", {}, peer), COLUMNS, as_json=as_json)


@image.command("show")
@click.argument("name", type=IMAGE_NAME)
@peer_option
@json_option
def show_image(name: str, peer: str | None, as_json: bool) -> None:
    """Show one image."""
    with open_link() as link:
        print_fields(link.call("get_image", {"image": name}, peer), FIELDS, as_json=as_json)


@image.command("import")
@click.argument("file", type=click.File("rb"))
@click.argument("name", metavar="NAME[:TAG]")
@json_option
def import_image(file: BinaryIO, name: str, as_json: bool) -> None:
    """Send a qcow2 or raw disk of this machine to the node; - reads stdin."""
    with open_link() as link:
        told(cast("Image", link.send(upload(name), counted(file, name))), as_json=as_json)


@image.command("build-tiny")
@peer_option
@json_option
def build_tiny(peer: str | None, as_json: bool) -> None:
    """Make tiny:latest from the distribution's packages: a few MB, boots in seconds, answers HTTP."""
    with open_link() as link:
        told(run(link, "build_tiny", {}, peer), as_json=as_json)


@image.command("create")
@click.argument("name", metavar="NAME[:TAG]")
@click.option("--from-vm", "vm", required=True, type=VM_NAME, metavar="VM", help="The VM whose disk it is; it may run.")
@click.option("--reset-identity", is_flag=True, help="Take the machine id and the SSH host keys out of the image.")
@peer_option
@json_option
def create_image(name: str, vm: str, reset_identity: bool, peer: str | None, as_json: bool) -> None:
    """Make an image of a VM's disk."""
    wanted = {"vm": vm, "name": name, "reset_identity": reset_identity}
    with open_link() as link:
        told(run(link, "capture_image", wanted, peer), as_json=as_json)


@image.command("prune")
@click.option("--all", "everything", is_flag=True, help="Named images too; without it, those that lost their names.")
@click.option("--dry-run", is_flag=True, help="Tell what would go.")
@peer_option
@json_option
def prune_images(everything: bool, dry_run: bool, peer: str | None, as_json: bool) -> None:
    """Remove images that no VM stands on."""
    with open_link() as link:
        gone = run(link, "prune_images", {"all": everything, "dry_run": dry_run}, peer)
    if as_json:
        print_json(gone)
        return
    for image in gone.images:
        click.echo(f"{called(image)} {size(image.allocated)}")
    say(f"{size(gone.freed)} {'would be' if dry_run else 'are'} free")


@image.command("fsck")
@peer_option
@json_option
def fsck_images(peer: str | None, as_json: bool) -> None:
    """Read every image again, mend what is kept beside them, and tell what is damaged (then exit 1)."""
    with open_link() as link:
        checked = run(link, "fsck_images", {}, peer)
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
def remove_image(names: tuple[str, ...], peer: str | None) -> None:
    """Remove images that no VM stands on."""
    with open_link() as link:
        for name in names:
            gone = run(link, "remove_image", {"image": name}, peer)
            click.echo(f"{called(gone)} removed")
