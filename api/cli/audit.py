"""`twinshare audit`: who changed what on this node, read from its files, whether it runs or not."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ...agent.audit.chain import Broken, ChainEntry, Entry
from ...agent.audit.reading import newest
from ...agent.audit.reading import verify as verify_log
from ...agent.home import Home
from ...agent.identity import IdentityError, load_identity
from .listing import Listing, listing_options
from .node import data_dirs
from .output import Column, print_json
from .parameters import json_option

COLUMNS: list[Column] = [
    ("ROW", lambda row: row["row"]),
    ("AT", lambda row: row["at"]),
    ("WHO", lambda row: row["principal"]),
    ("WHAT", lambda row: row["what"]),
    ("ON", lambda row: row["on"]),
    ("AT PEER", lambda row: row["at_peer"]),
    ("OUTCOME", lambda row: row["outcome"] or "(begins)"),
    ("CALL", lambda row: row["call"]),
]


@contextmanager
def _readable() -> Iterator[Home]:
    """The node's directory, and what is wrong with it as an error of the command."""
    homes = [Home(path) for path in map(Path, data_dirs())]
    home = next((home for home in homes if home.database.exists()), homes[0])
    try:
        if not home.identity_key.exists():
            raise FileNotFoundError
        yield home
    except (FileNotFoundError, sqlite3.OperationalError):
        raise click.ClickException(
            f"there is no node's audit log in {home.path}; name it by $TWINSHARE_DATA_DIR"
        ) from None
    except PermissionError as error:
        raise click.ClickException(f"{error.filename} cannot be read by this user; its owner can, or root") from None
    except (Broken, IdentityError, ValueError) as error:
        raise click.ClickException(f"the audit log of {home.path} cannot be trusted: {error}") from None


class _Seen(click.ParamType[ChainEntry]):
    name = "number:hash"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ChainEntry:
        if isinstance(value, ChainEntry):
            return value
        found = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", value)
        if found is None:
            self.fail(f"'{value}' is not what 'twinshare audit verify' prints: a number, ':' and 64 hex digits")
        return ChainEntry(int(found[1]), bytes.fromhex(found[2]))


@click.group()
def audit() -> None:
    """Who changed what on this node.

    The audit log is a chain of rows that the node has signed.

    \b
    twinshare audit ls -n 20
    twinshare audit verify
    twinshare audit verify --seen 1042:9f2c...     # and it still has what was there then
    """


@audit.command("ls")
@click.option("-n", "--newest", "count", type=click.IntRange(1, 100_000), default=50, show_default=True)
@listing_options
def list_rows(count: int, listing: Listing) -> None:
    """List the newest rows, oldest first. Each call has one when it begins and one with its outcome."""
    with _readable() as home:
        rows = newest(home.database, count)
    listing.show([{"row": number, **_fields(entry)} for number, entry in rows], COLUMNS)


def _fields(entry: Entry) -> dict[str, Any]:
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    return fields | {"at": datetime.fromtimestamp(entry.at, UTC)}


@audit.command("verify")
@click.option("--seen", type=_Seen(), help="What an earlier verify printed: the log must go on from there.")
@click.option("--peer-id", help="The node that must have signed it; by default the one whose key lies beside it.")
@json_option
def verify(seen: ChainEntry | None, peer_id: str | None, as_json: bool) -> None:
    """Check that no row was changed, dropped, moved or cut off; exit 1 if one was."""
    with _readable() as home:
        peer_id = peer_id or load_identity(home.identity_key).peer_id
        rows, last = verify_log(home.database, peer_id, seen)
    seen_now = f"{last.number}:{last.hash.hex()}"
    if as_json:
        return print_json({"rows": rows, "last": last.number, "seen": seen_now, "peer_id": peer_id})
    click.echo(f"{rows} rows are whole and signed by {peer_id}; keep this to check later that none was cut off:")
    return click.echo(seen_now)
