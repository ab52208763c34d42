"""What one account may use of a node at most, whatever its role: the one place where that is defined.

An account is the node's own user, a token, or a peer with all that it asks for others (`account_of`). What an account
may own, such as VMs, is in its membership certificate instead (`protocols.access.Limits`). The receiver enforces these:
a sender may be anybody's program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import trio

from ..protocols.access import LOCAL
from ..protocols.errors import RateLimited
from ..protocols.peer import BudgetUse
from ..protocols.session import MAX_CALLS
from .token_buckets import TokenBuckets

MAX_ACCOUNTS: Final = 1024
"""Accounts whose use is remembered; the ones that are idle for the longest are forgotten."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` at once at most, of which `per_second` come back."""

    burst: int
    per_second: float


@dataclass(frozen=True, slots=True)
class Share:
    """Rows and bytes of a log. Whoever has more loses the oldest of its own."""

    rows: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLimits:
    """Rates are checked before anything is decoded, shares when rows are written. Sizes in bytes.

    `statements` are signatures to verify; one that is wrong counts as `bad_statement`. `labels` are bytes of the labels
    of all VMs of the account. `streams` are those of one connection. `half_open` connections have not proved their
    peer ID, those of one address.
    """

    calls: Rate = Rate(5000, 1000)
    call_bytes: Rate = Rate(32 << 20, (32 << 20) / 60)
    messages: Rate = Rate(600, 10)
    message_bytes: Rate = Rate(4 << 20, (4 << 20) / 60)
    statements: Rate = Rate(4000, 50)
    bad_statement: int = 20
    audit_log: Share = Share(10_000, 16 << 20)
    event_log: Share = Share(512, 768 << 10)
    journal: Share = Share(2000, 32 << 20)
    labels: int = 64 << 10
    calls_at_once: int = MAX_CALLS
    streams: int = 128
    connections: int = 4
    half_open: int = 32


RESERVED_PART: Final = 16
"""The part of the places of a table, which all share, that each account has whatever the others hold."""


def has_no_place(most: int, taken: int, own: int) -> bool:
    """Return whether a table of `most` places gives no other to who has `own` of those `taken`."""
    return taken >= most and own >= most // RESERVED_PART


MAX_LABELS: Final = 512 << 10
"""Bytes of the labels of all VMs of a node: with them its list of VMs fits a frame of the peer protocol."""
LIMITS: Final = AccountLimits()
OWN_LIMITS: Final = AccountLimits(
    audit_log=Share(100_000, 256 << 20),
    event_log=Share(4096, 8 << 20),
    journal=Share(10_000, 256 << 20),
    labels=256 << 10,
)
"""Those of the node's own user."""


def limits_of(account: str) -> AccountLimits:
    """Return the limits of an account."""
    return OWN_LIMITS if account == LOCAL else LIMITS


class Budget(StrEnum):
    """The rates of `AccountLimits`, by the names of its fields."""

    CALLS = "calls"
    CALL_BYTES = "call_bytes"
    MESSAGES = "messages"
    MESSAGE_BYTES = "message_bytes"
    STATEMENTS = "statements"


class Meter:
    """What each account has used of its rates. `clock` gives seconds and never goes back."""

    def __init__(self, limits: AccountLimits = LIMITS, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._rates: dict[Budget, Rate] = {budget: getattr(limits, budget) for budget in Budget}
        self._buckets = {
            budget: TokenBuckets(rate.per_second, rate.burst, MAX_ACCOUNTS) for budget, rate in self._rates.items()
        }
        self.refused: Counter[tuple[str, Budget]] = Counter()

    def charge(self, account: str, budget: Budget, amount: float = 1) -> None:
        """Take `amount` from a budget. Raises: RateLimited, with the seconds until there is enough."""
        wait = self._buckets[budget].take(account, self._clock(), amount)
        if wait:
            if len(self.refused) >= MAX_ACCOUNTS * len(Budget):
                self.refused.clear()
            self.refused[account, budget] += 1
            seconds = int(wait) + 1
            what = budget.replace("_", " ")
            raise RateLimited(f"more {what} than this node takes; try again in {seconds} s", retry_after=seconds)

    def fine(self, account: str, budget: Budget, amount: float) -> None:
        """Take up to `amount`, as much as there is."""
        self._buckets[budget].fine(account, self._clock(), amount)

    def use(self, account: str) -> Iterator[BudgetUse]:
        """Yield what is used of each budget now, and how often it was refused."""
        for budget, rate in self._rates.items():
            left = self._buckets[budget].left(account, self._clock())
            refused = self.refused[account, budget]
            yield BudgetUse(budget=str(budget), used=round(rate.burst - left), burst=rate.burst, refused=refused)
