"""`twinshare completion`: what a shell needs to complete our commands and the names of things."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash: eval "$(twinshare completion bash)"                     in ~/.bashrc
    zsh:  eval "$(twinshare completion zsh)"                      in ~/.zshrc
    fish: twinshare completion fish > ~/.config/fish/completions/twinshare.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows the three that the choice allows
    made = kind(ctx.find_root().command, {}, "twinshare", "_TWINSHARE_COMPLETE")
    # NAME@NODE is one word: by default bash breaks words at @.
    click.echo(("COMP_WORDBREAKS=${COMP_WORDBREAKS//@}\n" if shell == "bash" else "") + made.source())
