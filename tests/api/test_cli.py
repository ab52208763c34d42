"""The command line against scripted nodes: what it sends, prints, and exits with."""

import json
import socket
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tests.api.recorded import VM, Answer, RecordedNode, operation, recorded_node
from twinshare.api.cli import COMMANDS, main
from twinshare.api.cli.lazy import LazyGroup

IMAGE = {
    "name": "tiny",
    "tag": "latest",
    "digest": "sha256:00",
    "size": 1 << 30,
    "allocated": 5 << 20,
    "created_at": "2025-05-10T10:30:00Z",
}


def twinshare(node: RecordedNode, *arguments: str, stdin: str | None = None) -> Result:
    environment = {"TWINSHARE_API": node.url, "TWINSHARE_TOKEN": "secret"}
    return CliRunner().invoke(main, list(arguments), env=environment, input=stdin)


def failed(code: str, status: int, error: str = "it failed") -> Answer:
    return Answer({"error": error, "code": code}, status)


def test_a_list_is_a_table_or_one_json_document() -> None:
    with recorded_node({"GET /api/vm": [Answer({"vms": [VM]})]}) as node:
        table = twinshare(node, "vm", "ls")
        document = twinshare(node, "vm", "ls", "--json")
    assert [line.split()[:3] for line in table.stdout.splitlines()] == [
        ["NAME", "STATUS", "CPU"],
        ["example-vm", "running", "2"],
    ]
    assert (table.stderr, document.stderr) == ("", "")
    (row,) = json.loads(document.stdout)
    assert {key: row[key] for key in VM} == VM
    assert {seen.headers["authorization"] for seen in node.seen} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("command", "route", "body"),
    [
        ("vm ls", "GET /api/vm", {"vms": []}),
        ("vm forwards web", "GET /api/vm/web/port-forward", {"forwards": []}),
        ("image ls", "GET /api/image", {"images": []}),
        ("op ls", "GET /api/operations", {"operations": []}),
        ("token ls", "GET /api/tokens", {"tokens": []}),
        ("peer ls", "GET /api/p2p/peers", {"peers": []}),
    ],
)
def test_every_listing_prints_nothing_but_data(command: str, route: str, body: object) -> None:
    with recorded_node({route: [Answer(body)]}) as node:
        result = twinshare(node, *command.split(), "--json")
    assert (result.exit_code, json.loads(result.stdout), result.stderr) == (0, [], "")


def test_the_fleet_is_one_list() -> None:
    away = VM | {"node": "alice", "reachable": False}
    with recorded_node({"GET /api/fleet/vm": [Answer({"vms": [VM | {"node": "here"}, away]})]}) as node:
        lines = twinshare(node, "vm", "ls", "--fleet").stdout.splitlines()
        assert twinshare(node, "vm", "ls", "--fleet", "--on", "alice").exit_code == 2
    assert lines[0].startswith("NODE")
    assert "running, node unreachable" in lines[2]


def test_the_page_is_opened_by_a_link() -> None:
    session = {"link": "http://127.0.0.1:1/enter/x", "expires": "2025-05-10T10:30:00Z"}
    with recorded_node({"POST /api/session": [Answer(session)]}) as node:
        assert twinshare(node, "ui", "--print").stdout == "http://127.0.0.1:1/enter/x\n"


@pytest.mark.parametrize(
    ("link", "first"),
    [
        ("http://127.0.0.1:8081/enter/x", "the node listens on this machine alone; on the other machine run"),
        ("https://node.example/enter/x", "open this link on the other machine within a minute:"),
    ],
)
def test_the_page_is_opened_from_another_machine(link: str, first: str) -> None:
    session = {"link": link, "expires": "2025-05-10T10:30:00Z"}
    with recorded_node({"POST /api/session": [Answer(session)]}) as node:
        shown = twinshare(node, "ui", "--remote")
    assert (shown.stdout, shown.stderr.splitlines()[0]) == (f"{link}\n", first)
    assert ("ssh -N -L 8081:127.0.0.1:8081 " in shown.stderr) == link.startswith("http:")


def test_create_reads_files_on_this_side_and_waits_for_the_operation(tmp_path: Path) -> None:
    (tmp_path / "init").write_text("#cloud-config\n")
    (tmp_path / "key.pub").write_text("# mine\nssh-ed25519 AAAA me\n")
    made = VM | {"warnings": ["slow"]}
    routes = {
        "POST /api/vm": [Answer(operation("running", kind="create_vm"), 202)],
        "GET /api/operations/op-1/wait": [
            Answer(operation("running", kind="create_vm")),
            Answer(operation("done", kind="create_vm", result=made)),
        ],
    }
    command = "vm create example-vm --image tiny --cpu 1 --memory 128 --disk 1 --start --label a=b --forward 8081:80"
    with recorded_node(routes) as node:
        result = twinshare(
            node, *command.split(), "--user-data", str(tmp_path / "init"), "--ssh-key", str(tmp_path / "key.pub")
        )
    assert (result.exit_code, result.stdout, result.stderr) == (0, "example-vm running\n", "warning: slow\n")
    assert node.seen[0].headers["prefer"] == "respond-async"
    assert node.seen[0].json == {
        "name": "example-vm",
        "image": "tiny",
        "cpu_cores": 1,
        "memory": 128,
        "disk_size": 1,
        "start": True,
        "labels": {"a": "b"},
        "forwards": [{"host_port": 8081, "guest_port": 80}],
        "cloud_init": {"user_data": "#cloud-config\n", "ssh_authorized_keys": ["ssh-ed25519 AAAA me"]},
    }


def test_several_at_once_are_one_document() -> None:
    routes = {f"POST /api/vm/{name}/start": [Answer(operation("done", result=VM), 202)] for name in ("a", "b")}
    with recorded_node(routes) as node:
        assert twinshare(node, "vm", "start", "a", "b").stdout == "example-vm running\n" * 2
        assert len(json.loads(twinshare(node, "vm", "start", "a", "b", "--json").stdout)) == 2
        assert json.loads(twinshare(node, "vm", "start", "a", "--json").stdout)["name"] == "example-vm"


def test_commands_work_on_a_peer() -> None:
    routes = {
        "POST /api/remote/alice/vm/web/stop": [Answer(operation("done", result=VM), 202)],
        "GET /api/remote/alice/image": [Answer({"images": [IMAGE]})],
    }
    with recorded_node(routes) as node:
        assert twinshare(node, *["vm", "stop", "web", "--force", "--on", "alice"]).stdout == "example-vm running\n"
        assert "1 GiB" in twinshare(node, *["image", "ls", "--on", "alice"]).stdout
    assert node.seen[0].json == {"force": True}


@pytest.mark.parametrize(
    ("answer", "exit_code", "said"),
    [
        (failed("vm_not_found", 404, "no VM 'web' here"), 1, "Error: no VM 'web' here\n"),
        (failed("insufficient_resources", 507, "no room:\n 1 MiB"), 1, "Error: no room: 1 MiB\n"),
        (failed("forbidden", 403, "needs the role admin"), 1, "Error: needs the role admin\n"),
        (failed("peer_unreachable", 502, "alice does not answer"), 4, "Error: alice does not answer\n"),
        (failed("p2p_stopped", 503, "P2P services are not running"), 4, "Error: P2P services are not running\n"),
        (Answer(b"<html>", 200, "text/html"), 4, None),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(answer: Answer, exit_code: int, said: str | None) -> None:
    with recorded_node({"GET /api/vm/web": [answer]}) as node:
        result = twinshare(node, "vm", "show", "web")
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert said in {result.stderr, None}
    assert result.stderr.count("\n") == 1


def test_an_operation_fails_as_it_failed() -> None:
    error = {"error": "the guest did not stop in 60 s; use --force", "code": "deadline_exceeded"}
    with recorded_node({"POST /api/vm/web/stop": [Answer(operation("failed", error=error), 202)]}) as node:
        result = twinshare(node, "vm", "stop", "web")
    assert (result.exit_code, result.stderr) == (1, "Error: the guest did not stop in 60 s; use --force\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("vmm ls", "Did you mean 'vm'?"),
        ("vm crate x", "Did you mean 'create'?"),
        ("vm create x", "Missing option '--image'"),
        ("vm create x --image tiny --memory lots", "--memory"),
        ("vm create x --image tiny --forward 80:x", "is not HOST:GUEST"),
        ("vm create x --image tiny --label novalue", "is not K=V"),
        ("vm create x --image tiny --user-data /nonexistent", "No such file"),
        ("token create x --expires soon", "is not a duration"),
        ("token create x --role king", "'viewer', 'operator', 'admin'"),
        ("vm set x", "say what to change"),
        ("peer message x HELLO []", "not a JSON object"),
    ],
)
def test_wrong_usage(command: str, said: str) -> None:
    with recorded_node({}) as node:
        result = twinshare(node, *command.split())
    assert (result.exit_code, result.stdout, node.seen) == (2, "", [])
    assert said in result.stderr


def test_a_name_that_nobody_has_gets_the_nearest_one() -> None:
    routes = {
        "GET /api/vm/exmple-vm": [failed("vm_not_found", 404, "no VM 'exmple-vm' here")],
        "GET /api/vm": [Answer({"vms": [VM]})],
        "POST /api/vm": [failed("image_not_found", 404, "no image 'tony'")],
        "GET /api/image": [Answer({"images": [IMAGE]})],
    }
    with recorded_node(routes) as node:
        assert "did you mean 'example-vm'?" in twinshare(node, "vm", "show", "exmple-vm").stderr
        assert "did you mean 'tiny'?" in twinshare(node, *["vm", "create", "a", "--image", "tiyn"]).stderr


def test_a_value_that_the_node_would_refuse_is_refused_here() -> None:
    with recorded_node({}) as node:
        result = twinshare(node, *["vm", "create", "Not_A_Name", "--image", "tiny"])
    assert (result.exit_code, node.seen) == (1, [])
    assert "name" in result.stderr


def test_a_cut_connection_is_repeated_with_the_same_key() -> None:
    routes = {"POST /api/vm/web/start": [Answer(cut=0), Answer(operation("done", result=VM), 202)]}
    with recorded_node(routes) as node:
        assert twinshare(node, "vm", "start", "web").exit_code == 0
    assert len(node.seen) == 2
    assert len({seen.headers["idempotency-key"] for seen in node.seen}) == 1


def test_a_node_that_says_it_stops_is_waited_for() -> None:
    stopping = failed("unavailable", 503, "the node is stopping; try again when it is back")
    with recorded_node({"GET /api/vm": [stopping, Answer(cut=0), Answer({"vms": []})]}) as node:
        assert twinshare(node, "vm", "ls").exit_code == 0
    with recorded_node({"GET /api/vm": [failed("hypervisor_down", 503)]}) as node:
        assert twinshare(node, "vm", "ls").exit_code == 1
    assert len(node.seen) == 1


def test_an_image_is_sent_from_here(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 600_000)
    with recorded_node({"POST /api/image/import": [Answer(IMAGE)]}) as node:
        result = twinshare(node, "image", "import", str(tmp_path / "disk"), "tiny:latest")
    assert (result.exit_code, result.stdout) == (0, "tiny:latest sha256:00\n")
    assert (node.seen[0].target, len(node.seen[0].body)) == ("/api/image/import?name=tiny%3Alatest", 600_000)
    with recorded_node({"POST /api/image/import": [Answer(IMAGE)]}) as node:
        assert twinshare(node, "image", "import", "--raw", str(tmp_path / "disk"), "tiny").exit_code == 0
    assert node.seen[0].target == "/api/image/import?name=tiny&raw=true"


def test_a_node_may_refuse_an_upload_before_it_is_whole(tmp_path: Path) -> None:
    """A server that answers and hangs up while megabytes are still coming: its reason must arrive."""
    (tmp_path / "disk").write_bytes(b"x" * 20_000_000)
    body = json.dumps({"error": "needs the role operator", "code": "forbidden"})
    answer = f"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer.encode())
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        from threading import Thread

        thread = Thread(target=serve, args=(listener,))
        thread.start()
        node = RecordedNode({}, f"http://127.0.0.1:{listener.getsockname()[1]}")
        result = twinshare(node, "image", "import", str(tmp_path / "disk"), "tiny")
        thread.join()
    assert (result.exit_code, result.stderr) == (1, "Error: needs the role operator\n")


def test_a_secret_goes_to_stdout_alone() -> None:
    token = {"name": "ci", "role": "viewer", "created_at": "2025-05-10T10:30:00Z", "secret": "s3cret"}
    with recorded_node({"POST /api/tokens": [Answer(token)]}) as node:
        result = twinshare(node, *["token", "create", "ci", "--role", "viewer", "--expires", "2d"])
    assert (result.stdout, node.seen[0].json) == ("s3cret\n", {"name": "ci", "role": "viewer", "expires_in": 172800})


def test_status_tells_health_and_room() -> None:
    room = {"memory": 4096, "cpu": 8, "disk": 100}
    health = {"status": "ok", "name": "n", "version": "0", "peer_id": "p", "hypervisor": "qemu", "accelerator": "kvm"}
    routes = {
        "GET /api/health": [Answer(health | {"p2p": "stopped", "vms": 0, "uptime": 90061, "problems": ["no passt"]})],
        "GET /api/capacity": [Answer(dict.fromkeys(("total", "reserve", "committed", "in_flight", "available"), room))],
    }
    with recorded_node(routes) as node:
        result = twinshare(node, "status")
        assert json.loads(twinshare(node, "status", "--json").stdout)["capacity"]["total"] == room
    assert "uptime:     1d 1h" in result.stdout
    assert "4096 of 4096 MiB memory" in result.stdout
    assert result.stderr == "problem: no passt\n"


def test_the_log_is_followed_until_the_node_ends_it() -> None:
    def part(text: str, offset: int) -> Answer:
        return Answer({"text": text, "offset": offset, "next_offset": offset + len(text)})

    routes = {"GET /api/vm/web/log": [part("a", 0), part("bc", 1), part("d", 0), failed("vm_not_found", 404)]}
    with recorded_node(routes) as node:
        result = twinshare(node, "vm", "logs", "-f", "web")
    assert (result.stdout, result.exit_code) == ("abcd", 1)
    assert result.stderr.startswith("the log was begun anew or shortened")
    assert [seen.target for seen in node.seen[2:4]] == ["/api/vm/web/log?offset=3", "/api/vm/web/log?offset=1"]


def test_ip_waits_and_says_when_there_is_none() -> None:
    none = Answer({"ip": None, "addresses": [], "source": "none"})
    some = Answer({"ip": "10.0.2.15", "addresses": ["10.0.2.15"], "source": "agent"})
    with recorded_node({"GET /api/vm/web/ip": [none, none, some]}) as node:
        first = twinshare(node, "vm", "ip", "web")
        then = twinshare(node, "vm", "ip", "web", "--wait")
    assert (first.exit_code, first.stdout) == (1, "")
    assert "--wait" in first.stderr
    assert (then.exit_code, then.stdout) == (0, "10.0.2.15\n")


def test_a_picture_goes_to_a_file(tmp_path: Path) -> None:
    with recorded_node({"GET /api/vm/web/screenshot": [Answer(b"\x89PNG", 200, "image/png")]}) as node:
        assert twinshare(node, "vm", "screenshot", "web", "-o", str(tmp_path / "a.png")).exit_code == 0
        assert twinshare(node, "vm", "screenshot", "web", "-o", "/nonexistent/a.png").exit_code == 1
    assert (tmp_path / "a.png").read_bytes() == b"\x89PNG"


def test_every_command_has_help() -> None:
    def walk(command: click.Command, *path: str) -> int:
        result = CliRunner().invoke(main, [*path, "--help"])
        assert result.exit_code == 0, path
        context, seen = click.Context(command), 1
        if not isinstance(command, click.Group):
            return seen
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            assert below.help, (*path, name)
            if isinstance(command, LazyGroup):
                assert command.commands_at[name][1] == below.get_short_help_str(200), (*path, name)
            seen += walk(below, *path, name)
        return seen

    assert walk(main) > len(COMMANDS) + 40


def test_forwards_are_part_of_the_create() -> None:
    taken = {"error": "port 8081 is taken", "code": "port_taken", "details": None}
    with recorded_node({"POST /api/vm": [Answer(taken, 409)]}) as node:
        result = twinshare(node, *["vm", "create", "example-vm", "--image", "tiny", "--start", "--forward", "8081:80"])
    assert result.exit_code != 0
    assert "port 8081 is taken" in result.stderr
    [asked] = node.seen
    forwards = [{"host_port": 8081, "guest_port": 80}]
    assert asked.json == {"name": "example-vm", "image": "tiny", "start": True, "forwards": forwards}
