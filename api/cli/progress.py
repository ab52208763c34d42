"""Following an operation to its end, with a line of progress where a person is watching."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import click

from ...protocols.operation import Operation, Progress
from ..exchange import outcome
from ..sparse import disk_parts
from .node import NodeClient
from .output import on_terminal, printable, say, size

# Seconds between two requests for an operation: often where somebody watches, else as long as a request may take.
_POLL, _STEP = 0.4, 20.0
_WIDTH = 20


def run(client: NodeClient, name: str, arguments: Mapping[str, Any], peer: str | None = None) -> Any:
    """Do a mutation and return its result. Ctrl-C ends the waiting; the operation goes on.

    Raises: what the operation raises.
    """
    operation, at = client.begin(name, arguments, peer)
    return follow(client, operation, at)


def follow(client: NodeClient, operation: Operation, peer: str | None = None, timeout: float | None = None) -> Any:
    """Wait for an operation and return its result. With `timeout`, seconds, an operation that goes on is returned.

    Raises: the error that ended it.
    """
    with progress_line() as show:
        left, describe = timeout, ProgressText()
        while not operation.state.ended:
            show(describe(operation))
            step = min(_POLL if on_terminal() else _STEP, _STEP if left is None else left)
            try:
                operation = client.call("wait_operation", {"id": operation.id, "timeout": step}, peer)
            except KeyboardInterrupt:
                show("")
                say(f"operation {operation.id} goes on; see it with 'twinshare op wait {operation.id}'")
                raise click.exceptions.Exit(130) from None
            left = None if left is None else left - step
            if left is not None and left <= 0 and not operation.state.ended:
                return operation
    return outcome(operation)


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield a function that rewrites one line of the terminal; without a terminal it prints nothing."""
    watched = on_terminal()

    def show(text: str) -> None:
        if watched:
            click.echo(f"\r\x1b[2K{printable(text)}", err=True, nl=False)

    try:
        yield show
    finally:
        show("")


class ProgressText:
    """Describes an operation's progress; where it counts bytes, also their rate since it began to count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: tuple[str, float, int] = ("", 0.0, 0)

    def __call__(self, operation: Operation) -> str:
        progress = operation.progress
        if progress.unit == "bytes":
            amount = " ".join(filter(None, (_bar(progress), _amount(progress), self._rate(progress))))
        else:
            amount = f"{progress.done}/{progress.total} {progress.unit}" if progress.total else ""
        return " ".join(filter(None, (f"{operation.kind} {operation.target}:", progress.message, amount)))

    def _rate(self, progress: Progress) -> str:
        phase, began, first = self._since
        if phase != progress.message.partition(";")[0] or progress.done < first:
            self._since = (progress.message.partition(";")[0], self._clock(), progress.done)
            return ""
        seconds = self._clock() - began
        return f"{size((progress.done - first) / seconds)}/s" if seconds >= _POLL and progress.done > first else ""


def _amount(progress: Progress) -> str:
    return f"{size(progress.done)} of {size(progress.total)}" if progress.total else size(progress.done) or ""


def _bar(progress: Progress) -> str:
    if not progress.total:
        return ""
    full = min(_WIDTH, _WIDTH * progress.done // progress.total)
    return f"[{'#' * full}{'.' * (_WIDTH - full)}]"


def counted(file: BinaryIO, what: str) -> Iterator[bytes]:
    """Yield what is sent of a disk, and show how much it was."""
    sent = 0
    with progress_line() as show:
        for chunk in disk_parts(file):
            yield chunk
            sent += len(chunk)
            show(f"{what}: {size(sent)} sent")
