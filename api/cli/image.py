"""`twinshare image`: the disks that VMs start from."""

from __future__ import annotations

from typing import BinaryIO, cast

import click

from ...protocols.image import Image
from ..exchange import upload
from .link import open_link
from .names import IMAGE_NAME
from .output import Column, json_option, peer_option, print_fields, print_json, print_table, size
from .progress import counted, run

COLUMNS: list[Column] = [
    ("NAME", lambda image: image.name),
    ("TAG", lambda image: image.tag),
    ("SIZE", lambda image: size(image.size)),
    ("ON DISK", lambda image: size(image.allocated)),
    ("CREATED", lambda image: image.created_at),
    ("USED BY", lambda image: image.used_by),
]
FIELDS: list[Column] = [
    ("name", lambda image: f"{image.name}:{image.tag}"),
    ("registry", lambda image: image.registry),
    ("digest", lambda image: image.digest),
    ("size", lambda image: size(image.size)),
    ("on disk", lambda image: size(image.allocated)),
    ("source", lambda image: image.source),
    ("created", lambda image: image.created_at),
    ("used by", lambda image: image.used_by),
    ("labels", lambda image: image.labels),
]


@click.group()
def image() -> None:
    """Images: the disks that VMs start from.

    \b
    twinshare image build-tiny                         a guest of a few MB, to try things with
    twinshare image import debian-12.qcow2 debian:12   a disk of this machine
    """


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
        _told(cast("Image", link.send(upload(name), counted(file, name))), as_json=as_json)


@image.command("build-tiny")
@peer_option
@json_option
def build_tiny(peer: str | None, as_json: bool) -> None:
    """Make tiny:latest from the distribution's packages: a few MB, boots in seconds, answers HTTP."""
    with open_link() as link:
        _told(run(link, "build_tiny", {}, peer), as_json=as_json)


@image.command("rm")
@click.argument("names", nargs=-1, required=True, type=IMAGE_NAME)
@peer_option
def remove_image(names: tuple[str, ...], peer: str | None) -> None:
    """Remove images that no VM stands on."""
    with open_link() as link:
        for name in names:
            gone = run(link, "remove_image", {"image": name}, peer)
            click.echo(f"{gone.name}:{gone.tag} removed")


def _told(made: Image, *, as_json: bool) -> None:
    if as_json:
        print_json(made)
    else:
        click.echo(f"{made.name}:{made.tag} {made.digest}")
