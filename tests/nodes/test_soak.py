"""A little of everything at once upon three real nodes; a longer one with another seed is a matter of two numbers."""

import gc
import random
import re
from pathlib import Path

import pytest

from tests.nodes.fleet import fleet
from tests.nodes.soak import Soak

# The soak asks by httpx itself while it kills whom it asks: httpx then leaves its own one-line generator open. Nowhere
# else is that let pass, and our client must not do it (tests/api/test_rest_client.py).
pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:Async generator 'httpx._content.ByteStream:ResourceWarning"),
]

SEED, SECONDS, CLIENTS = 4, 6.0, 4


async def test_whatever_happens_in_whatever_order_it_ends_well(tmp_path: Path) -> None:
    async with fleet(tmp_path, 3, hypervisor=None) as nodes:
        soak = Soak(nodes, random.Random(SEED))
        await soak.prepare()
        await soak.run(SECONDS, CLIENTS)
        await soak.calm()
        for node in nodes:
            ticks = [int(found, 16) for found in re.findall(r"tick ([0-9a-f]{4})\r?\n", await soak.log(node))]
            assert ticks == list(range(1, len(ticks) + 1)), "a guest that nobody touched began anew"
        await soak.clear()
        assert soak.wrong == []
        assert soak.made, "no VM was ever made"
        print(f"\n{soak.asked} requests, {soak.made} VMs made")
    for node in nodes:
        assert not re.search(r"\[(error|critical) *\]|Traceback", node.said), node.said
    gc.collect()  # what the soak left is collected here, and not in the middle of another test
