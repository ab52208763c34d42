"""Commands on several things: all are done, each result is printed, and one failure is the exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from ...protocols.errors import TwinshareError
from ..exchange import is_unreachable
from .output import print_json, say


def do_each(names: Sequence[str], act: Callable[[str], Any], line: Callable[[Any], str], *, as_json: bool) -> None:
    """Do one after the other, whatever fails. As JSON one document: the result, or the list of several.

    In a list a failure is `{"name", "error", "code", "details"}`. Raises: the error when there is but one name;
    Exit with 1, or with 4 when every failure was that a node could not be reached.
    """
    if len(names) == 1:
        result = act(names[0])
        return print_json(result) if as_json else click.echo(line(result))
    results: list[Any] = []
    failures: list[TwinshareError] = []
    for name in names:
        try:
            results.append(act(name))
        except TwinshareError as error:
            failures.append(error)
            body = error.to_wire()
            results.append({"name": name, "error": body.error, "code": body.code, "details": body.details})
            say(f"Error: {name}: {' '.join(error.message.split())}")
        else:
            if not as_json:
                click.echo(line(results[-1]))
    if as_json:
        print_json(results)
    if failures:
        raise click.exceptions.Exit(4 if all(map(is_unreachable, failures)) else 1)
    return None
