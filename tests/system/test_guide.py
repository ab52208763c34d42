"""The guide's "VM Management" and "Error Handling" as one table, on real QEMU with the tiny guest."""

from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from twinshare.agent.testing import AgentProcess

pytestmark = pytest.mark.system

VM = {"name": "guide", "cpu_cores": 1, "memory": 128, "disk_size": 1, "network": "default", "hypervisor": "qemu"}
STOPPED = {**VM, "status": "stopped", "vnc_port": None}
RUNNING = {**VM, "status": "running", "vnc_port": int, "uptime": int}
MISSING = {"error": "Virtual machine 'non-existent-vm' not found", "code": "vm_not_found"}
NEW = {"name": "guide", "image": "tiny", "cpu_cores": 1, "memory": 128, "disk_size": 1}


@dataclass(frozen=True)
class Step:
    """One request, and what the guide says of its answer: a type stands for any value of it."""

    verb: str
    path: str
    status: int
    body: Any
    request: Any = None
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


TABLE = [
    Step("GET", "/api/vm", 200, {"vms": []}),
    Step("POST", "/api/vm", 200, {**STOPPED, "id": str, "created_at": str}, NEW),
    Step("GET", "/api/vm", 200, {"vms": [{**STOPPED, "id": str, "created_at": str}]}),
    Step("GET", "/api/vm/guide", 200, {**STOPPED, "uptime": None}),
    Step("POST", "/api/vm", 409, {"code": "vm_exists", "error": str}, NEW),
    Step("POST", "/api/vm/guide/stop", 200, {"success": True, "name": "guide", "status": "stopped"}),
    Step("POST", "/api/vm/guide/start", 200, {"success": True, "name": "guide", "status": "running", "vnc_port": int}),
    Step("POST", "/api/vm/guide/start", 200, {"success": True, "name": "guide", "status": "running", "vnc_port": int}),
    Step("GET", "/api/vm/guide", 200, RUNNING),
    Step("GET", "/api/vm", 200, {"vms": [RUNNING]}),
    Step("DELETE", "/api/vm/guide", 409, {"code": "wrong_state", "error": str}),
    Step("POST", "/api/vm/guide/stop", 200, {"success": True, "name": "guide", "status": "stopped"}, {"force": True}),
    Step("POST", "/api/vm/guide/stop", 200, {"success": True, "name": "guide", "status": "stopped"}, {"force": False}),
    Step("DELETE", "/api/vm/guide", 200, {"success": True, "name": "guide"}, {"delete_disk": True}),
    Step("GET", "/api/vm", 200, {"vms": []}),
    *(
        Step(verb, f"/api/vm/non-existent-vm{rest}", 404, MISSING)
        for verb, rest in (("GET", ""), ("POST", "/start"), ("POST", "/stop"), ("DELETE", ""))
    ),
    Step("POST", "/api/vm", 400, {"error": "image: Object missing required field `image`"}, {"name": "guide"}),
    Step("POST", "/api/vm", 400, {"error": "name: Object missing required field `name`"}, {"image": "tiny"}),
    Step("POST", "/api/vm", 400, {"error": str, "code": "invalid_request"}, raw=b"{not json"),
    Step("POST", "/api/vm", 404, {"error": str, "code": "image_not_found"}, {**NEW, "image": "no-such-image"}),
    Step("GET", "/api/vm", 200, {"vms": []}),
]


def fits(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            key in found and fits(found[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(fits, found, wanted))
    return isinstance(found, wanted) if isinstance(wanted, type) else found == wanted


async def test_the_table(node: AgentProcess) -> None:
    async with httpx.AsyncClient(base_url=node.url, timeout=60) as http:
        for step in TABLE:
            content = {"json": step.request} if step.request is not None else {"content": step.raw}
            headers = {"content-type": "application/json"} if step.raw else {}
            answer = await http.request(step.verb, step.path, headers=headers, **content)
            assert answer.status_code == step.status, (step, answer.text)
            assert answer.headers["content-type"].startswith("application/json")
            assert fits(answer.json(), step.body), (step, answer.text)
