"""A whole node on the in-memory adapters, for the tests of this folder."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from twinshare.agent.config import ApiConfig, Config, HypervisorConfig, NodeConfig, P2pConfig
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.node import Node
from twinshare.agent.open_node import open_node
from twinshare.protocols.access import LOCAL_ADMIN, Caller
from twinshare.protocols.image_service import ImageService
from twinshare.protocols.services import VmService
from twinshare.protocols.table import stub
from twinshare.protocols.vm import VmSpec


def config(data_dir: Path, **limits: Any) -> Config:
    hypervisor: dict[str, Any] = {"uri": "fake://", "stop_timeout": 2} | limits
    return Config(
        node=NodeConfig(name="here", data_dir=str(data_dir)),
        api=ApiConfig(listen="127.0.0.1:0"),
        p2p=P2pConfig(enabled=False),
        hypervisor=HypervisorConfig(**hypervisor),
    )


def vms_of(node: Node, caller: Caller = LOCAL_ADMIN) -> VmService:
    """The VMs of a node as a caller may use them."""
    return cast("VmService", stub(VmService, partial(node.dispatcher.call, caller)))


def images_of(node: Node, caller: Caller = LOCAL_ADMIN) -> ImageService:
    return cast("ImageService", stub(ImageService, partial(node.dispatcher.call, caller)))


@asynccontextmanager
async def open_test_node(data_dir: Path, **limits: Any) -> AsyncIterator[tuple[Node, VmService, MemoryHypervisor]]:
    """A node with the image `disk`, its VMs for an admin, and the in-memory hypervisor under it."""
    async with open_node(config(data_dir, **limits)) as node:
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        hypervisor = node.vms.hypervisor
        assert isinstance(hypervisor, MemoryHypervisor)
        yield node, vms_of(node), hypervisor


def spec(name: str = "one", **over: Any) -> VmSpec:
    fields: dict[str, Any] = {"name": name, "image": "disk", "memory": 64, "disk_size": 1, "cpu_cores": 1} | over
    return VmSpec(**fields)
