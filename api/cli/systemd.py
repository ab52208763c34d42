"""Messages to systemd over its notify socket: ready, alive, stopping. Without systemd nothing is sent."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import trio


class SystemdNotifier:
    """Reads `$NOTIFY_SOCKET` and `$WATCHDOG_USEC` once."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the abstract namespace.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        watched = environment.get("WATCHDOG_USEC", "")
        self._interval = int(watched) / 1_000_000 / 2 if watched.isdigit() else None

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    async def keep_alive(self) -> None:
        """Send a keepalive at half the watchdog's interval, until cancelled."""
        while self._interval is not None:
            self._send("WATCHDOG=1")
            await trio.sleep(self._interval)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as notify:
            try:
                notify.sendto(message.encode(), self._address)
            except OSError:
                # systemd reads when it can; a lost message costs a late READY at worst, never the node.
                return
