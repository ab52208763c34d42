"""Limits of a principal: what it may hold, and how fast it may ask."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.nodes import vms_of
from twinshare.agent.journal.pace import Pace
from twinshare.protocols.access import Caller, Limits, Role
from twinshare.protocols.errors import QuotaExceeded, RateLimited
from twinshare.protocols.frames import MAX_FRAME
from twinshare.protocols.vm import VmChange

from .nodes import open_test_node, spec


@pytest.mark.parametrize(("limits", "word"), [
    (Limits(vms=1), "vms"), (Limits(cpu=1), "cpu"), (Limits(memory=100), "memory"), (Limits(disk=1), "disk"),
])  # fmt: skip
async def test_a_principal_holds_no_more_than_its_limits(tmp_path: Path, limits: Limits, word: str) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        peer = vms_of(node, Caller(principal="12D3", role=Role.OPERATOR, limits=limits))
        await peer.create_vm(spec("one"))
        with pytest.raises(QuotaExceeded, match=word):
            await peer.create_vm(spec("two"))
        await vms.create_vm(spec("two"))
        await peer.delete_vm("one")
        await peer.create_vm(spec("three"))


async def test_a12_labels_of_an_account_never_make_the_list_too_large(tmp_path: Path) -> None:
    """14 VMs with large labels made a node's list exceed a frame: no peer could list it."""
    large = {f"key-{number}": "ä" * 250 for number in range(60)}
    async with open_test_node(tmp_path) as (node, vms, _):
        peer = vms_of(node, Caller(principal="12D3", role=Role.OPERATOR))
        await peer.create_vm(spec("small"))
        for number in range(2):
            await peer.create_vm(spec(f"large-{number}", labels=large))
        with pytest.raises(QuotaExceeded, match="labels"):
            await peer.create_vm(spec("large-2", labels=large))
        with pytest.raises(QuotaExceeded, match="labels"):
            await peer.update_vm("small", VmChange(labels=large))
        await peer.update_vm("large-0", VmChange(labels={**large, "key-0": "b"}))
        await peer.delete_vm("large-1")
        await peer.create_vm(spec("large-2", labels=large))
        await vms.create_vm(spec("own", labels=large))
        assert len(msgspec.msgpack.encode(await vms.list_vms())) < MAX_FRAME


def test_operations_a_minute_and_at_once() -> None:
    pace = Pace()
    for second in range(3):
        pace.begin("p", Limits(operations_per_minute=3), second)
        pace.end("p")
    with pytest.raises(RateLimited) as error:
        pace.begin("p", Limits(operations_per_minute=3), 10)
    assert error.value.details["retry_after"] == 51
    pace.begin("p", Limits(operations_per_minute=3), 60)
    with pytest.raises(RateLimited, match="at once"):
        pace.begin("p", Limits(operations_at_once=1), 61)
    pace.begin("other", Limits(operations_at_once=1), 61)


limits = st.builds(Limits, vms=st.none() | st.integers(0, 9), cpu=st.none() | st.integers(0, 9))


@given(limits, limits)
def test_a_chain_never_raises_a_limit(one: Limits, two: Limits) -> None:
    lower = one.lowered(two)
    assert lower == two.lowered(one)
    for name in ("vms", "cpu"):
        bounds = [value for value in (getattr(one, name), getattr(two, name)) if value is not None]
        assert getattr(lower, name) == (min(bounds) if bounds else None)
