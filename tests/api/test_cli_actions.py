"""What `vm start`, `stop` and their like say beside the VM's state."""

import shlex

import pytest

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


@pytest.mark.parametrize("options", ["--filter name=b", "--sort -name --limit 1", "--limit 2 --filter name=b"])
def test_a_node_that_knows_no_parameters_of_listings_is_asked_without(options: str) -> None:
    def refused(name: str) -> Answer:
        error = f"{name}: Object contains unknown field `{name}`"
        return Answer({"error": error, "code": "invalid_request", "details": {"path": name}}, 400)

    rows = [VM | {"name": name} for name in "ab"]
    first = options.split()[0].removeprefix("--").replace("filter", "name")
    with recorded_node({"GET /api/vm": [refused(first), Answer({"vms": rows})]}) as node:
        shown = twinshare(node, "vm", "ls", *options.split())
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == ["b"]
    assert node.seen[1].target == "/api/vm"
    with recorded_node({"GET /api/vm": [refused("other"), Answer({"vms": rows})]}) as node:
        assert twinshare(node, "vm", "ls", *options.split()).exit_code == 1


@pytest.mark.parametrize(
    "command",
    [
        "vm show ''", "vm rm ''", "vm show va@", "vm logs @far", "vm console ''", "vm create a --image tiny --on ''",
        "vm ls --on ''", "image show ''", "image rm ''", "op cancel ''", "peer show ''", "peer revoke ''",
        "token revoke ''", "vm unforward va 80 --on ''", "vm cp va@:/etc/hosts -",
    ],
)  # fmt: skip
def test_an_empty_name_is_said_to_be_empty(command: str) -> None:
    with recorded_node({}) as node:
        result = twinshare(node, *shlex.split(command))
    assert "must not be empty" in result.stderr, (result.exit_code, result.stderr)
    assert node.seen == []
