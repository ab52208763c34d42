"""How late a trio loop is: a task that sleeps a little and notes by how much it overslept, the worst of it.

As a program it starts an agent with such a task beside it; the worst lateness, in milliseconds, stands in a file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

from twinshare.api.cli import main
from twinshare.api.cli.systemd import SystemdNotifier

NAP = 0.005


async def note_lateness(file: Path) -> None:
    descriptor, worst = os.open(file, os.O_RDWR | os.O_CREAT), 0.0
    while True:
        before = trio.current_time()
        await trio.sleep(NAP)
        late = (trio.current_time() - before - NAP) * 1e3
        if os.pread(descriptor, 5, 0) == b"reset":
            worst = 0.0
        worst = max(worst, late)
        os.pwrite(descriptor, f"{worst:10.3f}".encode(), 0)


async def alone(file: Path) -> None:
    """The same beside nothing at all: what this machine itself adds."""
    await note_lateness(file)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text("reset")
    if len(sys.argv) == 2:
        trio.run(alone, target)
    keep_alive = SystemdNotifier.keep_alive

    async def watched(self: SystemdNotifier) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_alive, self)
            nursery.start_soon(note_lateness, target)

    SystemdNotifier.keep_alive = watched  # type: ignore[method-assign]  # to measure each turn of its loop
    sys.argv = ["twinshare", "agent", *sys.argv[2:]]
    main()
