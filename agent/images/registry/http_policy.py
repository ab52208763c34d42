"""The one policy for requests to registries, token servers and plain addresses: what is retried, when, how often.

A failure that passes is retried with growing pauses; `Retry-After`, in seconds or as a date, is obeyed up to a minute.
A longer one ends the attempts, and the error names the time. The server's own reason becomes part of every error.
A server that answered a moment ago and is gone now restarts, maybe: it is waited for about a minute.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import msgspec

from ....protocols.bounded.json import check_json
from ....protocols.errors import RegistryFailed
from ....protocols.operation import Progress
from ...backoff import Backoff
from ..port import Report

ATTEMPTS = 5
ATTEMPTS_AT_KNOWN = 16
"""At a server that answered a moment ago and is gone: about a minute with pauses of `LONGEST_PAUSE_AT_KNOWN`."""
LONGEST_PAUSE_AT_KNOWN = 5.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
LONGEST_RETRY_AFTER = 60.0
"""Seconds. A server that wants to be left alone for longer is not waited for."""
MAX_REASON = 300
LOGIN_CURE = (
    "send credentials of your own with the request; the node's are a username and a password_file under "
    "[[images.registries]], for others than its admins with their roles"
)
"""What to do where a registry wants a login."""

Result = TypeVar("Result")


class PassingError(Exception):
    """Worth another try. `pause` is how many seconds the server wants to be left alone.

    `known`: it answered a moment ago, and cannot be reached now.
    """

    def __init__(self, message: str, pause: float = 0.0, *, known: bool = False) -> None:
        super().__init__(message)
        self.pause, self.known = pause, known


class Retry:
    """Runs attempts under the policy. `sleep` waits between them, `report` shows why."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]], report: Report | None = None) -> None:
        self._sleep, self._report = sleep, report

    def reporting(self, report: Report) -> Retry:
        """Return the same policy for an operation that shows its progress."""
        return Retry(self._sleep, report)

    async def run(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Run until an attempt raises no PassingError. Raises: RegistryFailed, and what `attempt` raises."""
        backoff = new_backoff()
        while True:
            try:
                return await attempt()
            except PassingError as error:
                await self.wait(backoff, error)

    async def wait(self, backoff: Backoff, error: PassingError) -> None:
        """Wait before the next attempt. Raises: RegistryFailed after the last one, or for too long a delay."""
        delay = backoff.next(longest=LONGEST_PAUSE_AT_KNOWN if error.known else None)
        if error.pause > LONGEST_RETRY_AFTER:
            until = datetime.now(UTC) + timedelta(seconds=error.pause)
            raise RegistryFailed(f"{error}; it asks for no request before {until:%Y-%m-%d %H:%M:%S} UTC") from None
        if backoff.failures >= (ATTEMPTS_AT_KNOWN if error.known else ATTEMPTS):
            raise RegistryFailed(f"{error}; tried {backoff.failures} times") from None
        if self._report is not None:
            self._report(Progress(message=f"{error}; trying again"))
        await self._sleep(max(delay, error.pause))


def new_backoff() -> Backoff:
    return Backoff(FIRST_PAUSE, LONGEST_PAUSE)


def passes(status: int) -> bool:
    """Whether a status is worth another try."""
    return status in {408, 425, 429} or status >= 500


def retry_after(response: httpx.Response) -> float:
    """The seconds of a `Retry-After` header (RFC 9110, 10.2.3); 0 where there is none that can be read."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:10]), 1e9)
    with suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(value)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return 0.0


_REASONS = ("message", "details", "detail", "error_description", "error", "code", "errors")
"""Where the bodies of errors have their reason, the best first: registries, token servers and clouds differ."""
MAX_NESTED = 4


def reason_of(body: bytes) -> str:
    """What an error's body says: the OCI form (`errors`), a token server's, or short plain text. Empty for a page."""
    text = body.decode(errors="replace").strip()
    if text.startswith("{"):
        try:
            check_json(body)
            text = _reason_in(msgspec.json.decode(body))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return ""
    elif text.startswith("<"):
        return ""
    return "".join(char if char.isprintable() else " " for char in text)[:MAX_REASON]


def _reason_in(said: Any, depth: int = 0) -> str:
    """The text in a decoded body, whatever else is beside it; a list's parts are all named."""
    if isinstance(said, str) or depth >= MAX_NESTED:
        return said if isinstance(said, str) else ""
    if isinstance(said, list):
        return "; ".join(filter(None, (_reason_in(part, depth + 1) for part in said[:10])))
    if not isinstance(said, dict):
        return ""
    order = ("errors", *_REASONS[:-1]) if depth == 0 else _REASONS
    return next(filter(None, (_reason_in(said.get(name), depth + 1) for name in order)), "")
