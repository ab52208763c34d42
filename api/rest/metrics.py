"""What the node counts, for Prometheus.

Counting is a few additions for each request; the metric families are made when they are asked for.
"""

from __future__ import annotations

import importlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from ...agent.node import Node
from .node_metrics import node_families, sample

if TYPE_CHECKING:
    from prometheus_client.core import Metric

BOUNDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


@dataclass(slots=True)
class _Times:
    """How long the requests of one operation took."""

    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))


class Metrics:
    """Requests by operation and status, and the values that others keep current."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._times: dict[str, _Times] = {}
        self.connections = 0

    def count(self, operation: str, status: int, seconds: float) -> None:
        """One request is answered."""
        self._requests[operation, status] += 1
        times = self._times.get(operation)
        if times is None:
            times = self._times[operation] = _Times()
        times.seconds += seconds
        times.buckets[bisect_left(BOUNDS, seconds)] += 1

    def families(self) -> Iterator[Metric]:
        """What was counted, as Prometheus tells it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily("twinshare_http_requests", "Requests answered.", labels=["operation", "status"])
        for (operation, status), number in self._requests.items():
            requests.add_metric([operation, str(status)], number)
        yield requests
        times = HistogramMetricFamily(
            "twinshare_http_request_seconds", "Time from a request's head to its answer.", labels=["operation"]
        )
        for operation, taken in self._times.items():
            times.add_metric([operation], list(_cumulative(taken.buckets)), taken.seconds)
        yield times
        yield GaugeMetricFamily("twinshare_http_connections", "Open connections.", self.connections)


def _cumulative(buckets: list[int]) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, number in zip((*map(str, BOUNDS), "+Inf"), buckets, strict=True):
        total += number
        yield bound, total


class _Page:
    """One scrape: what was counted, and the node as it is now."""

    def __init__(self, metrics: Metrics, gauges: list[Metric]) -> None:
        self._metrics = metrics
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics.families()
        yield from self._gauges


async def exposition(node: Node, metrics: Metrics) -> tuple[str, bytes]:
    """The media type and the text that Prometheus reads."""
    # Loading it takes a dozen milliseconds: too long for the loop.
    await trio.to_thread.run_sync(importlib.import_module, "prometheus_client")
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

    registry = CollectorRegistry()
    registry.register(_Page(metrics, [*node_families(await sample(node)), *_gauges(node)]))
    ProcessCollector(registry=registry)
    return CONTENT_TYPE_LATEST, generate_latest(registry)


def _gauges(node: Node) -> list[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    info = GaugeMetricFamily("twinshare_node_info", "The node.", labels=["name", "peer_id", "version"])
    info.add_metric([node.name, node.peer_id, node.version], 1)
    used, refused = _budgets(node)
    health = node.health.report()
    return [
        info,
        used,
        refused,
        GaugeMetricFamily("twinshare_healthy", "Whether the node can run VMs.", float(health.status == "ok")),
        GaugeMetricFamily("twinshare_uptime_seconds", "Time since the node was ready.", health.uptime),
        GaugeMetricFamily("twinshare_last_event_id", "Number of the newest event.", node.events.last_id),
    ]


def _budgets(node: Node) -> tuple[Metric, Metric]:
    """What the members of the fleet use of what this node takes from each."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = ["peer", "budget"]
    used = GaugeMetricFamily("twinshare_peer_budget_used_ratio", "Part of a peer's budget that is used.", labels=labels)
    refused = CounterMetricFamily("twinshare_peer_budget_refused", "Calls of a peer beyond its budget.", labels=labels)
    for peer in node.mesh.context.membership.peers:
        for use in node.mesh.context.meter.use(peer.sub):
            used.add_metric([peer.sub, use.budget], use.used / use.burst)
            refused.add_metric([peer.sub, use.budget], use.refused)
    return used, refused
