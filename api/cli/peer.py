"""`twinshare peer`: the other nodes of the fleet."""

from __future__ import annotations

import json
from typing import Any

import click

from ...protocols.access import Role
from ...protocols.endpoint import endpoint
from ...protocols.peer import BudgetUse, InviteRequest, Message
from ..exchange import list_request
from .listing import Listing, listing_options
from .node import open_client
from .output import Column, print_fields, print_json, print_table, say
from .parameters import DURATION, PEER_NAME, ROLE, json_option
from .qr import draw_qr


def _budget(use: BudgetUse) -> str:
    """Return how much of a budget is used, and how often it was not enough."""
    refused = f", {use.refused} refused" if use.refused else ""
    return f"{use.budget.replace('_', ' ')} {use.used}/{use.burst}{refused}"


COLUMNS: list[Column] = [
    ("NAME", lambda peer: peer.name),
    ("STATUS", lambda peer: peer.status),
    ("ROLE", lambda peer: peer.role),
    ("PATH", lambda peer: peer.path),
    ("ADDRESS", lambda peer: endpoint(peer.address, peer.port) if peer.address else None),
    ("LAST SEEN", lambda peer: peer.last_seen),
    ("ADMITTED BY", lambda peer: peer.admitted_by),
    ("ID", lambda peer: peer.id),
]
FIELDS: list[Column] = [
    ("name", lambda peer: peer.name),
    ("id", lambda peer: peer.id),
    ("status", lambda peer: peer.status),
    ("role", lambda peer: peer.role),
    ("path", lambda peer: peer.path),
    ("last seen", lambda peer: peer.last_seen),
    ("services", lambda peer: peer.services),
    ("addresses", lambda peer: peer.addresses),
    ("membership", lambda peer: peer.membership),
    ("admitted by", lambda peer: peer.admitted_by),
    ("reason", lambda peer: peer.reason),
    ("cure", lambda peer: peer.cure),
    ("budgets", lambda peer: [_budget(use) for use in peer.budgets or []]),
]

EFFECTS: list[Column] = [
    ("NAME", lambda effect: effect.name),
    ("ROLE", lambda effect: effect.role),
    ("BECOMES", lambda effect: effect.becomes),
    ("ID", lambda effect: effect.id),
]


@click.group()
def peer() -> None:
    """Other nodes of the fleet.

    \b
    twinshare peer invite --role operator     prints a ticket
    twinshare peer join TICKET                on the other machine
    twinshare vm ls --on alice
    """


@peer.command("ls")
@listing_options
def list_peers(listing: Listing) -> None:
    """List the peers of the fleet."""
    with open_client() as client:
        listing.show(listing.fetch(client, list_request("list_peers")).peers, COLUMNS)


@peer.command("show")
@click.argument("name", metavar="PEER", type=PEER_NAME)
@json_option
def show_peer(name: str, as_json: bool) -> None:
    """Show one peer."""
    with open_client() as client:
        print_fields(client.call("get_peer", {"peer": name}), FIELDS, as_json=as_json)


@peer.command("invite")
@click.option("--role", type=ROLE, default="operator", show_default=True)
@click.option("--expires", type=DURATION, default="10m", show_default=True, help="How long the ticket is valid.")
@click.option("--uses", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many nodes may use it.")
@click.option("--qr", "as_qr", is_flag=True, help="Show the ticket as a QR code, too.")
@json_option
def invite(role: Role, expires: int, uses: int, as_qr: bool, as_json: bool) -> None:
    """Make a ticket with which another node can join the fleet."""
    with open_client() as client:
        made = client.call("invite_peer", {"invite": InviteRequest(role=role, expires=expires, uses=uses)})
    for warning in made.warnings:
        say(f"warning: {warning}")
    if as_json:
        return print_json(made)
    say("on the other machine: twinshare peer join TICKET, with this ticket:")
    if as_qr:
        click.echo(draw_qr(made.ticket))
    return click.echo(made.ticket)


@peer.command("join")
@click.argument("ticket")
@json_option
def join(ticket: str, as_json: bool) -> None:
    """Join the fleet that a ticket comes from."""
    with open_client() as client:
        found = client.call("join_fleet", {"ticket": ticket})
    if as_json:
        print_json(found)
    else:
        click.echo(f"joined the fleet of {found.name} ({found.id})")


@peer.command("revoke")
@click.argument("name", metavar="PEER", type=PEER_NAME)
@click.option("--leave-out", "left_out", metavar="PEER", multiple=True, help="Revoke this one, too; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Only list what would become of whom.")
def revoke(name: str, left_out: tuple[str, ...], dry_run: bool) -> None:
    """Revoke a peer's membership.

    Whom it had admitted stays, with a certificate of this node, but for those that are left out. What it had revoked
    is void: those nodes are members again.
    """
    with open_client() as client:
        effects = client.call("preview_revocation", {"peer": name})
        if not dry_run:
            gone = client.call("revoke_peer", {"peer": name, "leave_out": left_out})
    if dry_run or len(effects) > 1:
        print_table(effects, EFFECTS)
    if not dry_run:
        click.echo(f"{gone.name} ({gone.id}) revoked")


@peer.command("leave")
def leave() -> None:
    """Leave the fleet: this node is alone in a fleet of its own then."""
    with open_client() as client:
        found = client.call("leave_fleet", {})
    click.echo(f"{found.name} ({found.id}) has left the fleet and is in one of its own")


@peer.command("ping")
@click.argument("name", metavar="PEER", type=PEER_NAME)
@json_option
def ping(name: str, as_json: bool) -> None:
    """Measure the round trip to a peer."""
    with open_client() as client:
        found = client.call("ping_peer", {"peer": name})
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found.rtt:.1f} ms, {found.path}")


class _Json(click.ParamType[dict[str, Any]]):
    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail("not a JSON object", param, ctx)
        return found


@peer.command("message")
@click.argument("name", metavar="PEER", type=PEER_NAME)
@click.argument("message_type", metavar="TYPE")
@click.argument("data", type=_Json(), default="{}")
@json_option
def message(name: str, message_type: str, data: dict[str, Any], as_json: bool) -> None:
    """Send a message to a peer; DATA is a JSON object.

    \b
    twinshare peer message alice HELLO '{"message": "hi"}'
    """
    with open_client() as client:
        wanted = Message(peer_id=name, message_type=message_type, data=data)
        found = client.call("send_message", {"message": wanted})
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found.status}: {found.message}")
