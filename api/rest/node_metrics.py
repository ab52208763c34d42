"""Metrics of what a node has: VMs, images, operations and peers. A state that nothing is in is 0, not absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import trio

from ...agent.node import Node
from ...protocols.access import LOCAL_ADMIN
from ...protocols.errors import TwinshareError
from ...protocols.image import Image
from ...protocols.operation import Operation, OperationState
from ...protocols.peer import PeerInfo
from ...protocols.services import SERVICES
from ...protocols.table import all_methods
from ...protocols.vm import Vm, VmStats, VmStatus

if TYPE_CHECKING:
    from prometheus_client.core import Metric

TABLE = all_methods(SERVICES)
MAX_VMS = 200
"""VMs that have metrics of their own: each has six time series at the reader."""
STATS_TIMEOUT = 2.0
"""Seconds that a scrape waits for the statistics of all VMs."""
STATS_AT_ONCE = 8
PEER_STATES = ("online", "offline", "stopped")
_PER_VM: Mapping[str, tuple[str, str, str]] = {
    "cpu_time": ("counter", "twinshare_vm_cpu_seconds", "CPU time of a VM since it was started."),
    "memory_rss": ("gauge", "twinshare_vm_memory_rss_bytes", "Memory of the host that a VM takes."),
    "disk_read": ("counter", "twinshare_vm_disk_read_bytes", "Bytes that a VM has read from its disks."),
    "disk_written": ("counter", "twinshare_vm_disk_written_bytes", "Bytes that a VM has written to its disks."),
    "net_received": ("counter", "twinshare_vm_network_received_bytes", "Bytes that a VM has received."),
    "net_sent": ("counter", "twinshare_vm_network_sent_bytes", "Bytes that a VM has sent."),
}


@dataclass(frozen=True, slots=True)
class NodeSample:
    """What a node has at the time of a scrape; `stats` of the VMs that answered in time."""

    vms: list[Vm]
    images: list[Image]
    operations: list[Operation]
    peers: list[PeerInfo]
    stats: Mapping[str, VmStats]


async def sample(node: Node) -> NodeSample:
    """Read what the metrics are made of; the statistics of VMs that do not answer in time are missing."""

    async def read(name: str) -> Any:
        return await node.call(LOCAL_ADMIN, TABLE[name], {})

    vms: list[Vm] = await read("list_vms")
    stats: dict[str, VmStats] = {}
    limiter = trio.CapacityLimiter(STATS_AT_ONCE)

    async def read_stats(vm: Vm) -> None:
        async with limiter:
            try:
                stats[vm.name] = await node.call(LOCAL_ADMIN, TABLE["vm_stats"], {"vm": vm.id}, "local")
            except TwinshareError:
                return  # it has stopped meanwhile, or its QEMU does not answer

    with trio.move_on_after(STATS_TIMEOUT):
        async with trio.open_nursery() as nursery:
            for vm in [vm for vm in vms if vm.status is VmStatus.RUNNING][:MAX_VMS]:
                nursery.start_soon(read_stats, vm)
    return NodeSample(vms, await read("list_images"), await read("list_operations"), await read("list_peers"), stats)


def node_families(taken: NodeSample) -> list[Metric]:
    """The metrics of one sample."""
    from prometheus_client.core import GaugeMetricFamily

    operations = GaugeMetricFamily("twinshare_operations", "The newest thousand operations.", labels=["kind", "state"])
    counted = Counter((one.kind, one.state) for one in taken.operations)
    for kind in sorted({one.kind for one in taken.operations}):
        for state in OperationState:
            operations.add_metric([kind, state], counted[kind, state])
    used = float(sum({image.digest: image.allocated for image in taken.images}.values()))
    return [
        _by_state("twinshare_vms", "VMs by status.", "status", VmStatus, (vm.status for vm in taken.vms)),
        _by_state("twinshare_peers", "Peers by state.", "status", PEER_STATES, (peer.status for peer in taken.peers)),
        operations,
        GaugeMetricFamily("twinshare_images", "Images by name.", float(len(taken.images))),
        GaugeMetricFamily("twinshare_images_bytes", "Bytes that the images take on the disk.", used),
        *_per_vm(taken.stats),
    ]


def _by_state(name: str, about: str, label: str, states: Iterable[str] | type[StrEnum], found: Iterable[str]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family, counted = GaugeMetricFamily(name, about, labels=[label]), Counter(map(str, found))
    for state in [*dict.fromkeys([*map(str, states), *counted])]:
        family.add_metric([state], counted[state])
    return family


def _per_vm(stats: Mapping[str, VmStats]) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for field, (kind, name, about) in _PER_VM.items():
        family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, about, labels=["vm"])
        for vm, values in stats.items():
            family.add_metric([vm], float(getattr(values, field)))
        yield family
