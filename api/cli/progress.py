"""Following an operation to its end, with a line of progress where a person is watching."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import click

from ...protocols.operation import Operation, Progress
from ..exchange import outcome
from .link import Link
from .output import on_terminal, say, size

_CHUNK = 1 << 18
# Seconds between two looks: often where somebody watches, else as long as a request may take.
_LOOK, _STEP = 0.4, 20.0
_WIDTH = 20


def run(link: Link, name: str, arguments: Mapping[str, Any], peer: str | None = None) -> Any:
    """Do a mutation and return its result; Ctrl-C stops the waiting, not the work.

    Raises: what the operation raises.
    """
    return follow(link, link.begin(name, arguments, peer), peer)


def follow(link: Link, operation: Operation, peer: str | None = None, timeout: float | None = None) -> Any:
    """Wait for an operation and return its result. With `timeout`, seconds, an operation that goes on is returned.

    Raises: the error that ended it.
    """
    with _line() as show:
        left, tell = timeout, Teller()
        while not operation.state.ended:
            show(tell(operation))
            step = min(_LOOK if on_terminal() else _STEP, _STEP if left is None else left)
            try:
                operation = link.call("wait_operation", {"id": operation.id, "timeout": step}, peer)
            except KeyboardInterrupt:
                show("")
                say(f"operation {operation.id} goes on; see it with 'twinshare op wait {operation.id}'")
                raise click.exceptions.Exit(1) from None
            left = None if left is None else left - step
            if left is not None and left <= 0 and not operation.state.ended:
                return operation
    return outcome(operation)


@contextmanager
def _line() -> Iterator[Callable[[str], None]]:
    """A function that rewrites one line of the terminal; where there is none, it says nothing."""
    watched = on_terminal()

    def show(text: str) -> None:
        if watched:
            click.echo(f"\r\x1b[2K{text}", err=True, nl=False)

    try:
        yield show
    finally:
        show("")


class Teller:
    """Words for how far an operation is. Where it counts bytes, also how fast they come, since it began to count."""

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
        return f"{size((progress.done - first) / seconds)}/s" if seconds >= _LOOK and progress.done > first else ""


def _amount(progress: Progress) -> str:
    return f"{size(progress.done)} of {size(progress.total)}" if progress.total else size(progress.done) or ""


def _bar(progress: Progress) -> str:
    if not progress.total:
        return ""
    full = min(_WIDTH, _WIDTH * progress.done // progress.total)
    return f"[{'#' * full}{'.' * (_WIDTH - full)}]"


def counted(file: BinaryIO, what: str) -> Iterator[bytes]:
    """The file in chunks, with a line that tells how much has gone."""
    sent = 0
    with _line() as show:
        while chunk := file.read(_CHUNK):
            yield chunk
            sent += len(chunk)
            show(f"{what}: {size(sent)} sent")
