"""A clock that is set back or forth: uptimes go on, events keep their order, nothing fails."""

from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from twinshare.agent.vm import inventory

from .nodes import open_test_node, spec


@pytest.mark.parametrize("hours", [-24, 24])
async def test_a_clock_that_is_set_changes_no_uptime(
    tmp_path: Path, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Set(datetime):
        """The time of day, as somebody has set it."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # Self, which nobody here needs
            return datetime.now(tz) + timedelta(hours=hours)

    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        before = (await vms.get_vm("one")).uptime
        monkeypatch.setattr(inventory, "datetime", Set)
        await node.vms.inventory.resync()
        after = (await vms.get_vm("one")).uptime
        assert before is not None
        assert after is not None
        assert 0 <= after - before < 60
        await vms.stop_vm("one", force=True)
        assert (await vms.get_vm("one")).uptime is None
