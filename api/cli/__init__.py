"""The `twinshare` command.

Its parts are imported when they are asked for: a list must not pay for the agent. Exit codes: 0 done, 1 refused or
failed, 2 wrong usage, 3 something must be installed, 4 the node or a peer cannot be reached.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from ... import __version__
from ...protocols.errors import P2pStopped, PeerUnreachable, TwinshareError
from ..exchange import NodeUnreachable

# Where each command is: the module beside this one, and the name in it.
PLACES = {
    "agent": "agent:agent",
    "serve": "agent:agent",
    "status": "status:status",
    "doctor": "doctor:doctor",
    "vm": "vm:vm",
    "image": "image:image",
    "peer": "peer:peer",
    "token": "token:token",
    "op": "op:op",
    "audit": "audit:audit",
    "lab": "lab:lab",
    "completion": "completion:completion",
}


class Failure(click.ClickException):
    """An error of the tree as the command line tells it: in one line."""

    def __init__(self, error: TwinshareError) -> None:
        super().__init__(" ".join(error.message.split()))


class Unreachable(Failure):
    exit_code = 4


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in PLACES:
            return None
        module, _, name = PLACES[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f".{module}", __package__), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(error.command_name, possibilities=PLACES, ctx=ctx) from None

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run under its own name however it was started: usage lines and completion go by it."""
        return super().__call__(*args, **{"prog_name": "twinshare", **options})

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TwinshareError as error:
            kind = Unreachable if isinstance(error, NodeUnreachable | PeerUnreachable | P2pStopped) else Failure
            raise kind(error) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="twinshare")
def main() -> None:
    """One pool of virtual machines out of several people's machines.

    \b
    twinshare agent                                start a node on this machine
    twinshare image build-tiny                     make a first image, a few MB
    twinshare vm create web --image tiny --memory 128 --disk 1 --start
    twinshare vm ls

    The node is found by $TWINSHARE_API (a URL), else in $TWINSHARE_DATA_DIR or the default data directory. A token is
    taken from $TWINSHARE_TOKEN, else from the file that the node wrote.
    """
