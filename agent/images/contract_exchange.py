"""What every image exchange must do: pull and push by the OCI distribution protocol, as the store's contract asks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from ...protocols.errors import (
    ImageNotFound,
    InvalidRequest,
)
from ...protocols.operation import Progress
from .contract_samples import pieces, quiet, raw_disk, refused
from .port import ImageExchange, ImageStore

OpenExchange = Callable[[], AbstractAsyncContextManager[tuple[ImageStore, ImageExchange]]]


async def check_image_exchange(open_exchange: OpenExchange, host: str) -> None:
    """Two nodes and an empty registry at `host`, which takes pushes: what one sends, the other gets."""
    async with open_exchange() as (here, ours), open_exchange() as (there, theirs):
        image = await here.add_image("disk", pieces(raw_disk(30)), report=quiet)
        ref = f"{host}/org/disk:v1"
        assert ours.knows(ref)
        assert not ours.knows("blake3:" + "0" * 64)
        await refused(ImageNotFound, theirs.pull_image(ref, report=quiet))
        await refused(ImageNotFound, ours.push_image("absent", ref, report=quiet))
        await refused(InvalidRequest, ours.push_image("disk", "no-registry", report=quiet))
        await refused(InvalidRequest, theirs.pull_image("http://127.0.0.1/x.raw", report=quiet, sha256="0" * 64))
        await refused(InvalidRequest, theirs.pull_image("https://127.0.0.1/x.raw", report=quiet))
        assert (await ours.push_image("disk", ref, report=quiet, dry_run=True)).manifest == ""
        await refused(ImageNotFound, theirs.pull_image(ref, report=quiet))
        pushed = await ours.push_image("disk", ref, report=quiet)
        assert pushed.target == ref
        assert pushed.manifest.startswith("sha256:")
        seen: list[Progress] = []
        got = await theirs.pull_image(ref, report=seen.append)
        assert got.digest == image.digest
        assert (got.registry, got.name, got.tag) == (host, "org/disk", "v1")
        assert (await theirs.find_image(ref)).digest == image.digest
        assert (await theirs.pull_image(ref, report=quiet, name="mine:1")).name == "mine"
        await here.add_image("disk", pieces(raw_disk(31)), report=quiet, replace=True)
        moved = await ours.push_image("disk", ref, report=quiet)
        assert moved.manifest != pushed.manifest
        await theirs.pull_image(ref, report=quiet)
        assert (await there.get_image(ref)).digest != image.digest, "a tag that moved is followed"
        assert (await there.get_image("mine:1")).digest == image.digest
