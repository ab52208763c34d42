"""The `twinshare` command.

Its commands are imported when they are called: a list must not pay for the agent. Exit codes: 0 done, 1 refused or
failed, 2 wrong usage, 3 something must be installed, 4 the node or a peer cannot be reached, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import atexit
import gc
from typing import TYPE_CHECKING, Any

import click

from ... import __version__
from .lazy import LazyGroup

if TYPE_CHECKING:
    from ...protocols.errors import TwinshareError

INTERRUPTED = 130

COMMANDS = {
    "agent": ("agent:agent", "Start a node on this machine and serve until SIGTERM or Ctrl-C."),
    "serve": ("agent:agent", "Start a node on this machine and serve until SIGTERM or Ctrl-C."),
    "status": ("status:status", "Show the node's health and its free capacity."),
    "ui": ("ui:ui", "Open the node's page in a browser."),
    "doctor": ("doctor:doctor", "Check this machine; exit 0 if a VM could run here."),
    "repair": ("repair:repair", "Repair the database of a stopped node, if it is damaged."),
    "vm": ("vm:vm", "Virtual machines."),
    "image": ("image:image", "Images: the disks that VMs start from."),
    "peer": ("peer:peer", "Other nodes of the fleet."),
    "token": ("token:token", "Tokens for programs and for other people."),
    "op": ("op:op", "Operations: mutations under way and ended."),
    "audit": ("audit:audit", "Who changed what on this node."),
    "mcp": ("mcp:mcp", "Serve the node's operations as tools of the Model Context Protocol, over stdin and stdout."),
    "ssh-config": ("vm_ssh:ssh_config", "Print a block for ~/.ssh/config: ssh VM.twin."),
    "lab": ("lab:lab", "Several nodes on this machine."),
    "completion": ("completion:completion", "Print the completion script for a shell."),
}


class Failure(click.ClickException):
    """An expected error, shown in one line."""

    def __init__(self, error: TwinshareError) -> None:
        from .output import printable

        super().__init__(printable(" ".join(error.message.split())))


class Unreachable(Failure):
    exit_code = 4


class _Main(LazyGroup):
    """The error border of the command: whatever a user can cause ends in one line and its exit code."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run as a process, under its own name however it was started: usage lines and completion go by it.

        Collecting garbage costs a listing 15 % of its CPU, half of it when the interpreter ends and frees everything.
        """
        gc.set_threshold(50_000)
        atexit.register(gc.freeze)
        return super().__call__(*args, **{"prog_name": "twinshare", **options})

    def invoke(self, ctx: click.Context) -> Any:
        # Whoever imports it later has it: the help of the command must not pay for it.
        from ...protocols.errors import TwinshareError

        try:
            return super().invoke(ctx)
        except TwinshareError as error:
            raise _failure(error) from error
        except KeyboardInterrupt:
            click.echo("", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None


def _failure(error: TwinshareError) -> Failure:
    from ..exchange import is_unreachable

    return Unreachable(error) if is_unreachable(error) else Failure(error)


@click.group(
    cls=_Main,
    commands_at=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="twinshare")
def main() -> None:
    """One pool of virtual machines out of several people's machines.

    \b
    twinshare agent                                start a node on this machine
    twinshare image build-tiny                     make a first image, a few MB
    twinshare vm create web --image tiny --memory 128M --disk 1G --start
    twinshare vm ls
    twinshare ui                                   the page of the node, in a browser

    The node is found by $TWINSHARE_API (a URL), else in $TWINSHARE_DATA_DIR or the default data directory. A token is
    taken from $TWINSHARE_TOKEN, else from the file that the node wrote.
    """
