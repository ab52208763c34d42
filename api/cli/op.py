"""`twinshare op`: operations under way and ended."""

from __future__ import annotations

import click

from ...protocols.operation import Operation, OperationState
from ..exchange import list_request
from .listing import Listing, listing_options
from .node import open_client
from .output import Column, print_fields, say
from .parameters import OPERATION_ID, STATE, json_option, peer_option
from .progress import follow

COLUMNS: list[Column] = [
    ("ID", lambda operation: operation.id),
    ("KIND", lambda operation: operation.kind),
    ("TARGET", lambda operation: operation.target),
    ("STATE", lambda operation: operation.state),
    ("BY", lambda operation: operation.principal),
    ("UPDATED", lambda operation: operation.updated_at),
]
FIELDS: list[Column] = [
    ("id", lambda operation: operation.id),
    ("kind", lambda operation: operation.kind),
    ("target", lambda operation: operation.target),
    ("node", lambda operation: operation.node),
    ("state", lambda operation: operation.state),
    ("progress", lambda operation: operation.progress.message),
    ("error", lambda operation: operation.error and operation.error.error),
    ("by", lambda operation: operation.principal),
    ("created", lambda operation: operation.created_at),
    ("updated", lambda operation: operation.updated_at),
]


@click.group()
def op() -> None:
    """Operations: mutations under way and ended."""


@op.command("ls")
@click.option("--state", type=STATE, help="Only those in this state.")
@peer_option
@listing_options
def list_operations(state: OperationState | None, peer: str | None, listing: Listing) -> None:
    """List operations, newest first."""
    with open_client() as client:
        listing.show(
            listing.fetch(client, list_request("list_operations", peer, state=state), peer).operations, COLUMNS
        )


@op.command("show")
@click.argument("id", type=OPERATION_ID)
@peer_option
@json_option
def show_operation(id: str, peer: str | None, as_json: bool) -> None:
    """Show one operation."""
    with open_client() as client:
        print_fields(client.call("get_operation", {"id": id}, peer), FIELDS, as_json=as_json)


@op.command("wait")
@click.argument("id", type=OPERATION_ID)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Give up after so long; exit code 1.")
@peer_option
def wait_operation(id: str, timeout: float | None, peer: str | None) -> None:
    """Wait for an operation to end; fail as it failed."""
    with open_client() as client:
        found = follow(client, client.call("get_operation", {"id": id}, peer), peer, timeout)
    if isinstance(found, Operation):
        raise click.ClickException(f"operation {id} still goes on after {timeout:g} s")
    click.echo(f"{id} done")


@op.command("cancel")
@click.argument("id", type=OPERATION_ID)
@peer_option
def cancel_operation(id: str, peer: str | None) -> None:
    """Cancel an operation and undo what it did."""
    with open_client() as client:
        found = client.call("cancel_operation", {"id": id}, peer)
    click.echo(f"{found.id} {found.state}")
    if found.state is OperationState.DONE:
        say("it had already ended")
