"""`twinshare vm cp`: files and directories between this machine and a guest."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import click

from .boot_notice import boot_notice
from .node import connect, open_client
from .parameters import peer_option
from .vm_exec import guest_errors, guest_of

_REMOTE = re.compile(r"([^/:]+):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CopyEnd:
    """One end of a copy: `vm` is None for this machine."""

    vm: str | None
    path: str


def read_end(text: str) -> CopyEnd:
    """Return what VM:PATH, a path of this machine or - names; ./NAME:X is a path."""
    found = _REMOTE.fullmatch(text)
    return CopyEnd(found[1], found[2] or ".") if found else CopyEnd(None, text)


@click.command("cp")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--recursive", "-r", is_flag=True, help="Copy directories and all that is in them.")
@peer_option
def copy(source: str, target: str, recursive: bool, peer: str | None) -> None:
    """Copy files to a VM or from it.

    VM:PATH names the one side; - is stdin or stdout on the other.

    Modes and times are kept. A copy that was cut off goes on where it was when it is run again: of a directory the
    files that are there with the same size, mode and time stay. Links are left out.

    \b
    twinshare vm cp -r site web:/srv
    twinshare vm cp web@alice:/var/log/messages .
    tar c site | twinshare vm cp - web:/tmp/site.tar
    """
    near, far = read_end(source), read_end(target)
    if (near.vm is None) == (far.vm is None):
        raise click.UsageError("name a VM on one side: VM:PATH")
    from .copying import Copy  # it loads what the other commands do not need

    with guest_errors(), open_client() as client:
        vm, at = guest_of(client, near.vm or far.vm or "", peer)
        job = Copy(client, vm, at, recursive=recursive, connect=connect)
        with boot_notice(vm, at):
            if near.vm is None:
                job.upload(near.path, os.fsencode(far.path))
            else:
                job.download(os.fsencode(near.path), Path(far.path))
    if job.left_out:
        raise click.exceptions.Exit(1)
