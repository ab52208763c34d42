"""The page of the command line: what `--help` says, all at once."""

from __future__ import annotations

from collections.abc import Iterator

import click

from twinshare.api.cli import main

HEAD = """# The `twinshare` command

Every listing takes `--json`: one document on stdout, nothing else there; messages go to stderr.

Exit codes: 0 done; 1 refused or failed (one line says what, why and what to do); 2 wrong usage; 3 something must be
installed; 4 the node or a peer cannot be reached.

"""


def page() -> str:
    context = click.Context(main, info_name="twinshare", max_content_width=100, terminal_width=100)
    return HEAD + "\n".join(_sections(main, context))


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    # Click wraps to the context's width, so the page does not depend on who makes it.
    yield f"{'#' * min(2 + context.command_path.count(' '), 4)} `{context.command_path}`\n"
    yield f"```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from _sections(child, click.Context(child, info_name=name, parent=context))
