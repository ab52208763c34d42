"""The agent as a process: signals, readiness, the watchdog, and an end within ten seconds."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import click
import structlog
import trio

from ...agent.config import Config, ConfigError
from ...agent.database import DatabaseRefused
from ...agent.environment import reset_environment
from ...agent.heap import use_one_heap
from ...agent.home import HomeError
from ...agent.identity import IdentityError
from ...agent.node import Node
from ...agent.open_node import open_node
from ...protocols.errors import TwinshareError
from ..server.listen import CannotListen
from ..server.serve import open_api
from .logs import configure_logs
from .systemd import SystemdNotifier

log = structlog.get_logger(__name__)

# Seconds from the first signal to the end. The next start resumes what is not finished by then.
STOP_WITHIN = 10.0
# Python's own; the commands that end soon collect garbage less often.
GC_THRESHOLDS = (700, 10, 10)
SWITCH_INTERVAL = 0.001
"""Seconds after which a worker thread gives way to the event loop: at Python's 5 ms each wake of the loop waits as long
while a worker decodes or verifies what peers send."""


def run_agent(config: Config) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises: UsageError for a configuration that cannot be used, ClickException when the node cannot start.
    """
    reset_environment()
    configure_logs(config.log)
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL)
    use_one_heap()
    try:
        trio.run(_serve, config, _Stop())
    except (Exception, BaseExceptionGroup) as error:
        for reason in _leaves(error):
            if isinstance(reason, ConfigError):
                raise click.UsageError(str(reason)) from None
            if isinstance(reason, TwinshareError | DatabaseRefused | HomeError | IdentityError | CannotListen):
                raise click.ClickException(str(reason)) from None
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """What cannot start says so from below a nursery, which wraps it in groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


class _Stop:
    """Turns the first signal into an orderly end and the second into a quick one."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        # A node that is still starting is simply cancelled.
        self.starting = trio.CancelScope()
        self._last = threading.Timer(STOP_WITHIN, _give_up)
        self._last.daemon = True

    def install(self) -> None:
        token = trio.lowlevel.current_trio_token()

        def on_signal(number: int, frame: FrameType | None) -> None:
            token.run_sync_soon(self._begin)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)

    def _begin(self) -> None:
        if self.asked.is_set():
            _give_up()
        self.asked.set()
        self.starting.cancel()
        self._last.start()


def _give_up() -> None:
    """End now: the journal brings what was under way to its end at the next start, as after kill -9."""
    sys.stderr.flush()
    os._exit(0)


async def _serve(config: Config, stop: _Stop) -> None:
    stop.install()
    notifier = SystemdNotifier(os.environ)
    with stop.starting:
        async with open_node(config) as node, open_api(node) as url:
            # From here on a signal ends the wait below, and the contexts close in their order.
            stop.starting = trio.CancelScope()
            _announce_ready(node, url, notifier)
            # A full collection looked at 100,000 objects of the libraries each time: 60 ms without a turn for anybody.
            gc.freeze()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(notifier.keep_alive)
                await stop.asked.wait()
                nursery.cancel_scope.cancel()
            node.home.remove_agent_file()
            notifier.stopping()
            log.info("stopping")
    log.info("stopped")


def _announce_ready(node: Node, url: str, notifier: SystemdNotifier) -> None:
    node.home.write_agent_file(
        {
            "pid": os.getpid(),
            "version": node.version,
            "name": node.name,
            "peer_id": node.peer_id,
            "api_url": url,
            "addresses": node.addresses,
            "data_dir": str(node.home.path),
            "hypervisor": node.health.report().hypervisor,
        }
    )
    notifier.ready(f"{node.name} at {url}")
    log.info("ready", name=node.name, url=url, peer_id=node.peer_id)
