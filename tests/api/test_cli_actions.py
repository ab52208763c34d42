"""What `vm start`, `stop` and their like say beside the VM's state."""

from tests.api.recorded import VM, Answer, operation, recorded_node
from tests.api.test_cli import twinshare


def test_force_is_offered_only_where_it_would_do_it() -> None:
    overruled = {"error": "overruled by a later operation on this VM with force", "code": "wrong_state"}
    with recorded_node({"POST /api/vm/web/stop": [Answer(operation("failed", error=overruled), 202)]}) as node:
        assert twinshare(node, "vm", "stop", "web").stderr == f"Error: {overruled['error']}\n"


def test_a_start_prints_what_the_vm_warns_of() -> None:
    warned = [Answer(operation("done", result=VM | {"warnings": ["a forward is closed"]}), 202)]
    with recorded_node({"POST /api/vm/web/start": warned, "POST /api/vm/web/restart": warned}) as node:
        for command in ("start", "restart"):
            assert twinshare(node, "vm", command, "web").stderr == "warning: a forward is closed\n"
