"""`twinshare token`: who may call this node's API from elsewhere."""

from __future__ import annotations

import click

from ...protocols.access import Role
from ...protocols.node import TokenRequest
from .link import open_link
from .names import DURATION, ROLE, TOKEN_NAME
from .output import Column, json_option, print_json, print_table, say

COLUMNS: list[Column] = [
    ("NAME", lambda token: token.name),
    ("ROLE", lambda token: token.role),
    ("CREATED", lambda token: token.created_at),
    ("EXPIRES", lambda token: token.expires_at),
    ("LAST USED", lambda token: token.last_used_at),
]


@click.group()
def token() -> None:
    """Tokens for programs and people that are not this user on this machine.

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
    """Make a token and print its secret, which is told this once."""
    with open_link() as link:
        made = link.call("create_token", {"token": TokenRequest(name=name, role=role, expires_in=expires)})
    if as_json:
        return print_json(made)
    say(f"{made.name} ({made.role}); keep the secret, it is not told again:")
    return click.echo(made.secret)


@token.command("ls")
@json_option
def list_tokens(as_json: bool) -> None:
    """List tokens, without their secrets."""
    with open_link() as link:
        print_table(link.call("list_tokens"), COLUMNS, as_json=as_json)


@token.command("revoke")
@click.argument("names", nargs=-1, required=True, type=TOKEN_NAME)
def revoke_token(names: tuple[str, ...]) -> None:
    """Revoke tokens at once."""
    with open_link() as link:
        for name in names:
            click.echo(f"{link.call('revoke_token', {'name': name}).name} revoked")
