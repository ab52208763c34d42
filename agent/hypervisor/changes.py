"""The bounded channel of a driver's changes: when it overflows, a `RESYNC` says so."""

from __future__ import annotations

from ..channels import LossyChannel
from .port import Change, ChangeKind

CAPACITY = 1024


class ChangeFeed(LossyChannel[Change]):
    """Publishes changes. A list read after the `RESYNC` covers all that it displaced."""

    def __init__(self) -> None:
        super().__init__(CAPACITY, overflow=Change(kind=ChangeKind.RESYNC))
