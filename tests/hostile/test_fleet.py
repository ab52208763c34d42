"""A fleet with hostile members of each role: the honest ones go on, lose nothing, and put them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.trial import HOSTILE, MIB, report, trial

SECONDS = 12.0
GROWTH = 48 * MIB
"""Four accounts fill their shares of the event log, the statements and the audit log: 16 to 31 MiB were seen."""


@pytest.mark.system
async def test_nobody_is_harmed_by_members_of_any_role(tmp_path: Path) -> None:
    outcome = await trial(tmp_path, SECONDS, quiet=2.0)
    assert outcome.wrong == [], report(outcome)
    assert len(outcome.results) == len(HOSTILE)
    assert sum(sum(result.sent.values()) for result in outcome.results) > 100, report(outcome)
    assert sum(sum(result.refused.values()) for result in outcome.results) > 50, report(outcome)
    assert outcome.grown < GROWTH, report(outcome)
