"""Images and their names have owners: who is no admin moves, removes and prunes its own alone, here and at peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.nodes import spec
from tests.nodes.test_in_memory import call, open_fleet, open_node_on
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.node import Node
from twinshare.agent.p2p.memory import MemoryNetwork
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import Forbidden
from twinshare.protocols.image import Image, PullRequest

CI = Caller(principal="token:ci", role=Role.OPERATOR)
OTHER = Caller(principal="token:other", role=Role.OPERATOR)


async def add(node: Node, name: str, seed: int, caller: Caller = LOCAL_ADMIN) -> Image:
    return await node.import_image(caller, name, pieces(raw_disk(seed)))


async def names(node: Node) -> dict[str, str]:
    return {image.name: image.owner for image in await call(node, "list_images")}


async def test_an_operator_removes_and_prunes_its_own(tmp_path: Path) -> None:
    """The peer at node-1 is an operator at node-0, its token is another principal; the token of node-0 is a third."""
    async with open_fleet(tmp_path, Role.OPERATOR) as (_, (a, b)):
        await add(a, "admins", 2)
        await add(a, "tokens", 3, CI)
        await call(a, "create_vm", None, CI, spec=spec("mine"))
        peers = await call(b, "capture_image", "node-0", vm=(await far_vm(b, LOCAL_ADMIN)), name="peers")
        theirs = await call(b, "capture_image", "node-0", CI, vm=(await far_vm(b, CI)), name="theirs")
        assert (peers.owner, theirs.owner) == (b.peer_id, f"{b.peer_id}/token:ci")
        owned = {"admins": "local", "tokens": "token:ci", "peers": b.peer_id, "theirs": theirs.owner}
        assert await names(a) == owned | {"disk": "local"}
        for node, peer, caller, own in (
            (a, None, CI, {"tokens"}),
            (a, None, OTHER, set()),
            (b, "node-0", CI, {"theirs"}),
            (b, "node-0", LOCAL_ADMIN, {"peers", "theirs"}),
        ):
            for name in set(owned) - own:
                with pytest.raises(Forbidden, match="belongs to"):
                    await call(node, "remove_image", peer, caller, image=name)
            planned = await call(node, "prune_images", peer, caller, all=True, dry_run=True)
            assert {image.name for image in planned.images} <= own
        assert await names(a) == owned | {"disk": "local"}
        await call(b, "remove_image", "node-0", CI, image="theirs")
        await call(b, "remove_image", "node-0", image="peers")
        await call(a, "remove_image", None, CI, image="tokens")


async def far_vm(node: Node, caller: Caller) -> str:
    """Make a VM at node-0 whose disk is no other's."""
    size = 2 if caller is CI else 3
    made = await call(node, "create_vm", "node-0", caller, spec=spec(f"disk-{size}", disk_size=size))
    return str(made.name)


async def test_an_operator_does_not_move_another_s_name(tmp_path: Path) -> None:
    """It was done by pulling an image of its own under the name of somebody else's."""
    async with open_fleet(tmp_path, Role.OPERATOR) as (_, (a, b)):
        await add(a, "web", 2)
        await add(b, "web", 3)
        for ref in ("web", "evil"):
            await add(b, "evil", 4)
            request = PullRequest(image=ref, name="web")
            for node, peer, caller in ((b, "node-0", LOCAL_ADMIN), (b, "node-0", CI), (a, None, CI)):
                with pytest.raises(Forbidden, match="image name 'web:latest' belongs to local"):
                    await call(node, "pull_image", peer, caller, request=request)
        assert not list(a.backends.images.partials.iterdir()), "it was refused before anything was fetched"
        with pytest.raises(Forbidden, match="belongs to"):
            await call(b, "build_tiny", "node-0", await tinys(a))
        got = await call(b, "pull_image", "node-0", request=PullRequest(image="evil", name="mine"))
        assert got.owner == b.peer_id
        await add(b, "good", 5)
        with pytest.raises(Forbidden, match="belongs to"):
            await call(b, "pull_image", "node-0", CI, request=PullRequest(image="good", name="mine"))
        moved = await call(b, "pull_image", "node-0", request=PullRequest(image="good", name="mine"))
        assert (moved.owner, moved.digest != got.digest) == (b.peer_id, True)


async def tinys(node: Node) -> Caller:
    await add(node, "tiny", 9)
    return CI


async def test_a_check_by_an_operator_removes_nothing(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as (_, (a,)):
        left = a.backends.images.partials / ("0" * 32 + ".raw")
        left.write_bytes(b"x")
        [found] = (await call(a, "fsck_images", None, CI)).findings
        assert (found.mended, left.exists()) == (False, True)
        [found] = (await call(a, "fsck_images")).findings
        assert (found.mended, left.exists()) == (True, False)


async def test_owners_are_there_after_a_restart_and_after_the_database_was_lost(tmp_path: Path) -> None:
    for loses in (False, True):
        async with open_node_on(MemoryNetwork(), tmp_path, f"node-{loses}") as a:
            await add(a, "tokens", 3, CI)
            database = a.home.path / "images" / "images.db"
        if loses:
            database.write_bytes(b"no database any more " * 1000)
        async with open_node_on(MemoryNetwork(), tmp_path, f"node-{loses}") as a:
            if loses:
                await call(a, "fsck_images")
            assert (await names(a))["tokens"] == "token:ci"
