"""`twinshare token`: who may call this node's API from elsewhere."""

from __future__ import annotations

import click

from ...protocols.access import Role
from ...protocols.node import TokenRequest
from .bulk import do_each
from .listing import Listing, listing_options
from .node import open_client
from .output import Column, print_json, say
from .parameters import DURATION, ROLE, TOKEN_NAME, json_option

COLUMNS: list[Column] = [
    ("NAME", lambda token: token.name),
    ("ROLE", lambda token: token.role),
    ("CREATED", lambda token: token.created_at),
    ("EXPIRES", lambda token: token.expires_at),
    ("LAST USED", lambda token: token.last_used_at),
]


@click.group()
def token() -> None:
    """Tokens for programs and for other people.

    \b
    twinshare token create ci --role operator --expires 30d
    TWINSHARE_API=https://host:8080 TWINSHARE_TOKEN=... twinshare vm ls
    """


@token.command("create")
@click.argument("name")
@click.option("--role", type=ROLE, default="operator", show_default=True)
@click.option("--expires", type=DURATION, help="Such as 12h or 30d; without it the token does not expire.")
@json_option
def create_token(name: str, role: Role, expires: int | None, as_json: bool) -> None:
    """Make a token and print its secret, which is shown this once."""
    with open_client() as client:
        made = client.call("create_token", {"token": TokenRequest(name=name, role=role, expires_in=expires)})
    if as_json:
        return print_json(made)
    say(f"{made.name} ({made.role}); keep the secret, it is not shown again:")
    return click.echo(made.secret)


@token.command("ls")
@listing_options
def list_tokens(listing: Listing) -> None:
    """List tokens, without their secrets."""
    with open_client() as client:
        listing.show(client.call("list_tokens"), COLUMNS)


@token.command("revoke")
@click.argument("names", nargs=-1, required=True, type=TOKEN_NAME)
@json_option
def revoke_token(names: tuple[str, ...], as_json: bool) -> None:
    """Revoke tokens at once."""
    with open_client() as client:
        do_each(
            names,
            lambda name: client.call("revoke_token", {"name": name}),
            lambda token: f"{token.name} revoked",
            as_json=as_json,
        )
