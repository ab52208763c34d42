"""Images whose disk cannot be recognised: refused but for `raw`, which an image's label carries on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.images.registry.servers import docker_registry, needs_registry
from tests.images.registry.test_exchange import meda_parts, node, published
from twinshare.agent.images.contract_samples import pieces, quiet
from twinshare.agent.images.port import Origin
from twinshare.protocols.errors import InvalidRequest

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")
MIB = 1 << 20


@needs_registry
async def test_an_image_that_was_taken_as_raw_says_so_wherever_it_goes(tmp_path: Path) -> None:
    content = random.Random(7).randbytes(MIB)
    async with docker_registry(tmp_path / "registry") as registry:
        ref = f"{registry.host}/org/own:1"
        async with node(tmp_path / "here", registry) as (store, exchange):
            await store.add_image("own", pieces(content), report=quiet, origin=Origin(raw=True))
            await exchange.push_image("own", ref, report=quiet)
        async with node(tmp_path / "there", registry) as (store, exchange):
            image = await exchange.pull_image(ref, report=quiet)
            assert store.base_path(image.digest).read_bytes() == content
            assert image.labels == {"raw": "true"}


@needs_registry
async def test_parts_that_make_no_disk_are_refused_but_for_raw(tmp_path: Path) -> None:
    content = random.Random(8).randbytes(3 * MIB)
    async with published(tmp_path, *meda_parts(content)) as ((store, exchange), ref):
        with pytest.raises(InvalidRequest, match="cannot be recognised"):
            await exchange.pull_image(ref, report=quiet)
        image = await exchange.pull_image(ref, report=quiet, raw=True)
        assert store.base_path(image.digest).read_bytes() == content
