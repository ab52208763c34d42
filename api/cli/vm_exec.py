"""`twinshare vm exec`, `sessions`, `attach`: commands inside a guest."""

from __future__ import annotations

import shutil
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import fsencode
from typing import Any

import click

from ...protocols.errors import GuestUnreachable, HypervisorDown, InvalidRequest, TwinshareError, WrongState
from ...protocols.guest import ExecRequest, ExecResult, text_or_base64
from ..exchange import guest_path
from .boot_notice import boot_notice
from .listing import Listing, listing_options
from .node import NodeClient, open_client
from .output import Column, say
from .parameters import KEY_VALUE, SESSION_ID, VM_NAME, peer_option

UNREACHABLE = 125
COLUMNS: list[Column] = [
    ("SESSION", lambda session: session.id),
    ("STATE", lambda session: session.state),
    ("EXIT", lambda session: session.exit_code),
    ("USER", lambda session: session.user),
    ("STARTED", lambda session: session.started_at),
    ("COMMAND", lambda session: " ".join(session.command)),
]


@click.command("exec")
@click.argument("name", type=VM_NAME)
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND...")
@click.option("--terminal", "-t", is_flag=True, help="Give it a terminal that follows the window's size.")
@click.option("--interactive", "-i", is_flag=True, help="Send this terminal's input to it; a pipe's is always sent.")
@click.option("--env", "env", type=KEY_VALUE, multiple=True, help="K=V; repeatable.")
@click.option("--workdir", default="", metavar="DIR", help="Where it runs (the user's home).")
@click.option("--user", default="", help="As whom it runs (root).")
@click.option("--timeout", type=click.IntRange(1, 7 * 86400), metavar="SECONDS", help="End it after so long (124).")
@click.option("--detach", "-d", is_flag=True, help="Print the session's id, and leave it running.")
@peer_option
def exec_command(
    name: str, command: tuple[str, ...], terminal: bool, interactive: bool, env: tuple[tuple[str, str], ...],
    detach: bool, peer: str | None, **fields: Any,
) -> None:  # fmt: skip
    """Run a command in a VM's guest.

    Its output and its exit code are the command's own.

    It needs no network of the guest. 124 is the exit code when it takes too long, 125 when the guest cannot be asked.
    A command goes on when the connection is cut; it is joined again, without a byte lost.

    \b
    twinshare vm exec web -- uname -a
    twinshare vm exec -t -i web -- bash
    tar c site | twinshare vm exec web --on alice -- tar x -C /srv
    """
    columns, rows = shutil.get_terminal_size()
    sends_input = interactive or not sys.stdin.isatty()
    try:
        request = ExecRequest(
            **_command(command), **_environment(env), **_text_or_coded("workdir", fields.pop("workdir")), detach=True,
            interactive=sends_input and not detach,
            terminal=terminal, columns=max(columns, 1), rows=max(rows, 1),
            **{key: value for key, value in fields.items() if value is not None},
        )  # fmt: skip
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    with guest_errors(), open_client() as client:
        with boot_notice(name, peer):
            begun: ExecResult = client.call("exec_vm", {"vm": name, "request": request}, peer)
        if detach:
            click.echo(begun.session)
            return
        code = _run(client, name, peer, begun.session, terminal=terminal, reads_input=sends_input)
    raise click.exceptions.Exit(code)


@click.command("sessions")
@click.argument("name", type=VM_NAME)
@peer_option
@listing_options
def sessions(name: str, peer: str | None, listing: Listing) -> None:
    """List the commands that run in a VM.

    Those that ended in the last ten minutes are listed, too.
    """
    with open_client() as client:
        listing.show(client.call("list_vm_sessions", {"vm": name}, peer), COLUMNS)


@click.command("attach")
@click.argument("name", type=VM_NAME)
@click.argument("session", type=SESSION_ID)
@peer_option
def attach(name: str, session: str, peer: str | None) -> None:
    """Join a session in a VM again.

    Its output comes from the first byte that is kept; its input and exit code are the command's.
    """
    with guest_errors(), open_client() as client:
        found = client.call("get_session", {"vm": name, "session": session}, peer)
        code = _run(client, name, peer, session, terminal=found.terminal, reads_input=True)
    raise click.exceptions.Exit(code)


@contextmanager
def guest_errors() -> Iterator[None]:
    """Exit with 125 when the guest cannot be asked, and say why."""
    try:
        yield
    except (GuestUnreachable, WrongState, HypervisorDown) as error:
        say(f"Error: {' '.join(error.message.split())}")
        raise click.exceptions.Exit(UNREACHABLE) from None


def _run(
    client: NodeClient, name: str, peer: str | None, session: str, *, terminal: bool, reads_input: bool
) -> int:  # fmt: skip
    from .session import SessionRun, exit_code  # what speaks websocket takes a tenth of a second to load

    vm, at = client.locate(name, peer)
    run = SessionRun(
        client, guest_path(vm, f"/sessions/{session}/attach", at), terminal=terminal, reads_input=reads_input
    )
    return exit_code(run.run())


def _command(command: Sequence[str]) -> dict[str, Any]:
    """The command line as a field of the request: in base64 where it is not UTF-8."""
    raw = [fsencode(word) for word in command]
    try:
        return {"command": [word.decode() for word in raw]}
    except UnicodeDecodeError:
        return {"command_base64": [b64encode(word).decode() for word in raw]}


def _environment(given: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The variables as fields of the request: in base64 those that are not UTF-8."""
    pairs = [(fsencode(name), fsencode(value)) for name, value in given]
    coded = [name + b"=" + value for name, value in pairs if not _is_text(name + value)]
    return {
        "env": {name.decode(): value.decode() for name, value in pairs if _is_text(name + value)},
        "env_base64": [b64encode(pair).decode() for pair in coded],
    }


def _is_text(data: bytes) -> bool:
    return text_or_base64(data)[1] is None


def _text_or_coded(name: str, given: str) -> dict[str, Any]:
    """A field of the request, or that for base64 where it is not UTF-8."""
    text, coded = text_or_base64(fsencode(given))
    return {name: text} if coded is None else {f"{name}_base64": coded}


def guest_of(client: NodeClient, name: str, peer: str | None) -> tuple[str, str | None]:
    """Return the id of a VM and the peer that has it. Raises: VmNotFound, AmbiguousName, what the node raises."""
    found = client.call("get_vm", {"vm": name}, peer)
    vm, at = client.locate(name, peer)
    if not vm:
        raise TwinshareError(f"'{name}' names no VM")
    return found.id, at
