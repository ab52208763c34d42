"""Metrics of what a node has, as Prometheus reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.api.served import SPEC, Served, served
from twinshare.api.rest import node_metrics
from twinshare.protocols.vm import VmStatus


async def lines(api: Served) -> list[str]:
    return [line for line in (await api.client.get("/metrics")).text.splitlines() if not line.startswith("#")]


async def test_a_state_that_nothing_is_in_is_zero(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        found = await lines(api)
        assert {f'twinshare_vms{{status="{status}"}} 0.0' for status in VmStatus} <= set(found)
        assert {f'twinshare_peers{{status="{state}"}} 0.0' for state in ("online", "offline")} <= set(found)
        assert "twinshare_images 1.0" in found
        await api.client.post("/api/vm", json=SPEC)
        found = await lines(api)
        assert 'twinshare_vms{status="stopped"} 1.0' in found
        assert 'twinshare_operations{kind="create_vm",state="done"} 1.0' in found
        assert 'twinshare_operations{kind="create_vm",state="failed"} 0.0' in found


async def test_running_vms_have_metrics_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path) as api:
        for name in ("one", "two"):
            await api.client.post("/api/vm", json=SPEC | {"name": name, "start": True})
        await api.client.post("/api/vm", json=SPEC | {"name": "off"})
        found = await lines(api)
        for series in ("cpu_seconds_total", "memory_rss_bytes", "disk_read_bytes_total", "network_sent_bytes_total"):
            of = {line.partition('vm="')[2].partition('"')[0] for line in found if f"twinshare_vm_{series}{{" in line}
            assert of == {"one", "two"}, series
        monkeypatch.setattr(node_metrics, "MAX_VMS", 1)
        assert len([line for line in await lines(api) if "twinshare_vm_cpu_seconds_total{" in line]) == 1


async def test_the_dashboard_and_the_alerts_name_metrics_that_exist(tmp_path: Path) -> None:
    configs = Path(__file__).parents[2] / "configs"
    dashboard = json.loads((configs / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((configs / "prometheus-alerts.yaml").read_text())["groups"][0]["rules"]
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [rule["expr"] for rule in rules]
    assert all(rule["annotations"]["summary"] for rule in rules)
    async with served(tmp_path) as api:
        await api.client.post("/api/vm", json=SPEC | {"start": True})
        served_names = {re.match(r"\w+", line)[0] for line in await lines(api)}  # type: ignore[index]  # never empty
    for query in queries:
        for name in re.findall(r"\btwinshare_\w+", query):
            assert name in served_names, f"{name} of: {query}"
