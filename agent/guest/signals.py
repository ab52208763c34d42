"""Signals by name, as Linux numbers them on x86 and ARM."""

from __future__ import annotations

import signal

from ...protocols.errors import WrongState
from .session import HostedSession


def send_signal(session: HostedSession, name: str) -> None:
    """Send a signal to all processes of a session. Raises: WrongState when it has ended, or has no stream."""
    if session.stream is None:
        why = "has ended" if session.ended else "is run by the QEMU guest agent, which sends no signals"
        raise WrongState(f"session '{session.record.id}' {why}", session=session.record.id)
    session.stream.control("signal", signal=int(signal.Signals[f"SIG{name}"]))
