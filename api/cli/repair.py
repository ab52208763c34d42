"""`twinshare repair`: a damaged database of this machine's node, while its agent is stopped."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import click

from ...agent.config import default_data_dir
from ...agent.home import HomeError, locked_home
from ...agent.repair import repair as repair_database


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="TWINSHARE_DATA_DIR", help="The node's directory.")
def repair(data_dir: Path | None) -> None:
    """Repair the database of a stopped node, if it is damaged.

    What can be read of it is kept in a new file, and the damaged one beside it. The identity, VMs and images are not in
    the database: the node has them at its next start.
    """
    path = data_dir or Path(default_data_dir())
    if not path.is_dir():
        raise click.ClickException(f"there is no node in {path}; name it by --data-dir")
    try:
        with locked_home(path) as home:
            done = repair_database(home.database)
    except (HomeError, OSError, sqlite3.OperationalError) as error:
        raise click.ClickException(f"{path} was not repaired: {error}") from None
    if done is None:
        click.echo("nothing is wrong with the database")
        return
    click.echo(f"kept: {', '.join(done.kept) or 'nothing'}")
    click.echo(f"lost: {', '.join(done.lost) or 'nothing'}")
    click.echo(f"the damaged file is {done.damaged}; start the agent: it finds its VMs and images again")
