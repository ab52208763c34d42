"""What the command line understands and says beyond one VM of one node: bulk, names in the fleet, units, listings."""

from __future__ import annotations

import gzip
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from tests.api.recorded import VM, Answer, RecordedNode, operation, recorded_node
from tests.api.test_cli import failed, twinshare
from twinshare.api.cli import main
from twinshare.api.cli.output import fit, readable

ALICE = {"id": "p", "name": "alice", "address": "", "port": 0, "status": "online", "services": []}
FAR = VM | {"name": "far", "node": "node-2"}
SESSION = {
    "id": "0123456789abcdef", "vm": "web", "command": ["sh"], "state": "running", "started_at": VM["created_at"],
}  # fmt: skip
FORWARD = {"host_port": 8080, "guest_port": 80, "protocol": "tcp", "bind": "127.0.0.1", "active": True}
GONE = failed("vm_not_found", 404, "no VM 'nosuch' here")


def done(vm: dict[str, Any] = VM) -> list[Answer]:
    return [Answer(operation("done", result=vm), 202)]


# Several at once


@pytest.mark.parametrize("command", ["stop", "start", "pause", "resume", "restart", "rm"])
def test_all_are_done_each_is_reported_and_one_failure_is_the_exit_code(command: str) -> None:
    verb, path = ("DELETE", "") if command == "rm" else ("POST", f"/{command}")
    routes = {
        f"{verb} /api/vm/nosuch{path}": [GONE],
        f"{verb} /api/vm/demo{path}": done(),
        "GET /api/vm": [Answer({"vms": []})],
    }
    with recorded_node(routes) as node:
        result = twinshare(node, "vm", command, "nosuch", "demo")
        document = twinshare(node, "vm", command, "nosuch", "demo", "--json")
    assert (result.exit_code, result.stderr) == (1, "Error: nosuch: no VM 'nosuch' here\n")
    assert result.stdout in {"example-vm running\n", "example-vm deleted\n"}
    missing, there = json.loads(document.stdout)
    assert document.exit_code == 1
    assert (missing["name"], missing["code"], there["name"]) == ("nosuch", "vm_not_found", "example-vm")


def test_other_commands_on_several_do_all_too() -> None:
    token = {"name": "b", "role": "viewer", "created_at": VM["created_at"]}
    missing = failed("token_not_found", 404, "no token 'a'")
    with recorded_node({"DELETE /api/tokens/a": [missing], "DELETE /api/tokens/b": [Answer(token)]}) as node:
        result = twinshare(node, "token", "revoke", "a", "b")
    assert (result.exit_code, result.stdout) == (1, "b revoked\n")


def test_nodes_that_are_away_are_exit_code_4_when_nothing_else_failed() -> None:
    away = failed("peer_unreachable", 502, "alice does not answer")
    routes = {"POST /api/remote/alice/vm/a/stop": [away], "POST /api/remote/alice/vm/b/stop": [away]}
    with recorded_node(routes) as node:
        assert twinshare(node, *["vm", "stop", "a", "b", "--on", "alice"]).exit_code == 4


# Names in the fleet


def fleet(*rows: dict[str, Any]) -> dict[str, list[Answer]]:
    return {"GET /api/fleet/vm": [Answer({"vms": list(rows)})], "GET /api/vm": [Answer({"vms": []})]}


def test_the_one_vm_of_a_name_is_found_in_the_fleet() -> None:
    routes = fleet(FAR) | {
        "GET /api/vm/far": [failed("vm_not_found", 404)],
        "GET /api/remote/node-2/vm/far": [Answer(FAR)],
        "POST /api/vm/far/start": [failed("vm_not_found", 404)],
        "POST /api/remote/node-2/vm/far/start": [Answer(operation("running"), 202)],
        "GET /api/remote/node-2/operations/op-1/wait": [Answer(operation("done", result=FAR))],
    }
    with recorded_node(routes) as node:
        shown = twinshare(node, "vm", "show", "far")
        started = twinshare(node, "vm", "start", "far")
    assert (shown.exit_code, "node-2" in shown.stdout) == (0, True)
    assert (started.exit_code, started.stdout, started.stderr) == (0, "far running\n", "VM 'far' is on node 'node-2'\n")


def test_a_name_that_several_nodes_have_is_asked_back() -> None:
    routes = fleet(FAR, FAR | {"node": "node-3"}) | {"GET /api/vm/far": [failed("vm_not_found", 404)]}
    with recorded_node(routes) as node:
        result = twinshare(node, "vm", "show", "far")
    assert (result.exit_code, "far@node-2 or far@node-3" in result.stderr) == (1, True)


def test_name_at_node_names_a_vm_everywhere() -> None:
    routes = {
        "POST /api/remote/alice/vm/web/stop": done(),
        "GET /api/remote/alice/vm/web/port-forward": [Answer({"forwards": []})],
        "POST /api/remote/alice/image": [Answer(operation("failed", error={"error": "no", "code": "conflict"}), 202)],
    }
    with recorded_node(routes) as node:
        assert twinshare(node, "vm", "stop", "web@alice").exit_code == 0
        assert twinshare(node, "vm", "forwards", "web@alice", "--on", "alice").exit_code == 0
        twinshare(node, *["image", "create", "a:b", "--from-vm", "web@alice"])
        assert "leave out --on" in twinshare(node, *["vm", "show", "web@alice", "--on", "bob"]).stderr
    assert [seen.target for seen in node.seen] == [route.split()[1] for route in routes]


def test_a_peer_that_is_not_there_gets_the_nearest_name() -> None:
    routes = {
        "GET /api/remote/alcie/vm": [failed("peer_not_found", 404, "no peer of this fleet is called 'alcie'")],
        "GET /api/p2p/peers": [Answer({"peers": [ALICE]})],
    }
    with recorded_node(routes) as node:
        assert "did you mean 'alice'?" in twinshare(node, *["vm", "ls", "--on", "alcie"]).stderr


# Units


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ("--memory 4G --disk 30G", {"memory": 4096, "disk_size": 30}),
        ("--memory 512M --disk 1T", {"memory": 512, "disk_size": 1024}),
        ("--memory 1gib --disk 2048m", {"memory": 1024, "disk_size": 2}),
        ("--memory 640 --disk 7", {"memory": 640, "disk_size": 7}),
        ("--memory 131072KiB", {"memory": 128}),
    ],
)
def test_sizes_have_units(options: str, sent: dict[str, int]) -> None:
    with recorded_node({"POST /api/vm": done()}) as node:
        assert twinshare(node, *["vm", "create", "a", "--image", "tiny"], *options.split()).exit_code == 0
    assert node.seen[0].json == {"name": "a", "image": "tiny"} | sent


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--memory 2X", "is not a size"),
        ("--memory \u0661G", "is not a size"),
        ("--ttl \uff12h", "is not a duration"),
        ("--forward \u0661\u0662:80", "is not HOST:GUEST"),
        ("--memory 63", "less than 64 MiB"),
        ("--disk 1500M", "not a whole number of GiB"),
    ],
)
def test_what_is_no_size_is_wrong_usage(options: str, said: str) -> None:
    with recorded_node({}) as node:
        result = twinshare(node, *["vm", "create", "a", "--image", "tiny"], *options.split())
    assert (result.exit_code, said in result.stderr, node.seen) == (2, True, [])


# Files, options, words


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"#cloud-config\n", mtime=0), "compressed with gzip"),
        ("#cloud-config\n# é\n".encode("latin-1"), "not text in UTF-8"),
    ],
)
@pytest.mark.parametrize("option", ["--user-data", "--network-config", "--ssh-key"])
def test_a_file_that_is_no_text_is_refused_in_one_line(content: bytes, said: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    with recorded_node({}) as node:
        result = twinshare(node, *["vm", "create", "a", "--image", "tiny"], option, str(tmp_path / "f"))
    assert (result.exit_code, result.stderr.count("\n"), node.seen) == (1, 1, [])
    assert option in result.stderr
    assert said in result.stderr


def test_udp_is_not_offered_and_ports_are_called_ports() -> None:
    with recorded_node({}) as node:
        assert twinshare(node, *["vm", "forward", "web", "80", "--udp"]).exit_code == 2
        assert "host_port" not in twinshare(node, *["vm", "unforward", "--help"]).stdout.lower()


@pytest.mark.parametrize(("command", "verb", "path"), [("rm", "DELETE", ""), ("stop", "POST", "/stop")])
def test_what_force_would_do_is_said_as_the_option(command: str, verb: str, path: str) -> None:
    runs = {"error": "VM 'web' is running: stop it first, or force it", "code": "wrong_state"}
    with recorded_node({f"{verb} /api/vm/web{path}": [Answer(operation("failed", error=runs), 202)]}) as node:
        assert twinshare(node, "vm", command, "web").stderr.endswith("or force it (--force)\n")
        assert "--force" not in twinshare(node, "vm", command, "web", "--force").stderr


# Completion


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        (["vm", "create", "a", "--image"], "t", ["tiny"]),
        (["vm", "create", "a", "--image"], "deb", ["debian-12"]),
        (["vm", "create", "a", "--network"], "", ["default", "isolated", "lab"]),
        (["vm", "ls", "--on"], "al", ["alice"]),
        (["vm", "show"], "", ["example-vm", "far@node-2"]),
        (["vm", "show"], "far@", ["far@node-2"]),
        (["vm", "show", "--on", "alice"], "", ["other"]),
        (["image", "pull"], "deb", ["debian-12"]),
        (["op", "show"], "op", ["op-1"]),
        (["vm", "attach", "web"], "", ["0123456789abcdef"]),
        (["vm", "unforward", "web"], "80", ["8080"]),
        (["peer", "ping"], "a", ["alice"]),
    ],
)
def test_what_is_named_completes_from_the_node(
    words: list[str], incomplete: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = {"name": "tiny", "tag": "latest", "digest": "d", "size": 1, "allocated": 1, "created_at": VM["created_at"]}
    routes = {
        "GET /api/vm": [Answer({"vms": [VM | {"network": "lab", "node": "node-1"}]})],
        "GET /api/remote/alice/vm": [Answer({"vms": [VM | {"name": "other"}]})],
        "GET /api/fleet/vm": [Answer({"vms": [VM | {"node": "node-1"}, FAR], "unreachable": []})],
        "GET /api/image": [Answer({"images": [image]})],
        "GET /api/catalogue": [Answer({"entries": [{"name": "debian-12", "source": "s", "user": "u", "about": ""}]})],
        "GET /api/p2p/peers": [Answer({"peers": [ALICE]})],
        "GET /api/operations": [Answer({"operations": [operation("done")]})],
        "GET /api/vm/web/sessions": [Answer({"sessions": [SESSION]})],
        "GET /api/vm/web/port-forward": [Answer({"forwards": [FORWARD]})],
    }
    with recorded_node(routes) as node:
        monkeypatch.setenv("TWINSHARE_API", node.url)
        found = ShellComplete(main, {}, "twinshare", "_X").get_completions(words, incomplete)
    assert [item.value for item in found] == expected


# Listings


ROWS = [
    VM | {"name": "a", "memory": 1024, "labels": {"env": "prod"}},
    VM | {"name": "b", "memory": 512, "status": "stopped", "uptime": None},
    VM | {"name": "c", "memory": 2048, "labels": {"env": "test"}},
]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--filter status=running", ["a", "c"]),
        ("--filter label=env=prod", ["a"]),
        ("--filter label=env", ["a", "c"]),
        ("--filter name=[ab] --filter status=stop*", ["b"]),
        ("--sort memory", ["b", "a", "c"]),
        ("--sort -memory", ["c", "a", "b"]),
        ("--sort uptime", ["a", "c", "b"]),
    ],
)
def test_listings_are_filtered_and_sorted(options: str, names: list[str]) -> None:
    with recorded_node({"GET /api/vm": [Answer({"vms": ROWS})]}) as node:
        table = twinshare(node, "vm", "ls", *options.split())
        document = twinshare(node, "vm", "ls", *options.split(), "--json")
    assert [line.split()[0] for line in table.stdout.splitlines()[1:]] == names
    assert [row["name"] for row in json.loads(document.stdout)] == names


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ("", [""]),
        ("--filter status=running --sort -memory", ["?status=running&sort=-memory"]),
        ("--filter label=env=prod --filter label=a", ["?label=env%3Dprod&label=a"]),
        ("--filter name=[ab] --limit 1", [""]),
        ("--filter status=stop* --filter name=b*", ["?name=b%2A"]),
        ("--sort cpu --limit 1", [""]),
        ("--limit 3", ["?limit=3", "?limit=1&after=more"]),
    ],
)
def test_the_node_does_what_it_understands_of_a_listing(options: str, targets: list[str]) -> None:
    pages = [Answer({"vms": ROWS[:2], **({"next": "more"} if options else {})}), Answer({"vms": ROWS[2:]})]
    with recorded_node({"GET /api/vm": pages}) as node:
        shown = twinshare(node, "vm", "ls", *options.split())
    assert [seen.target.removeprefix("/api/vm") for seen in node.seen] == targets
    assert shown.exit_code == 0
    if options == "--limit 3":
        assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == ["a", "b", "c"]


def test_every_listing_takes_a_limit() -> None:
    with recorded_node(
        {
            "GET /api/tokens": [
                Answer({"tokens": [{"name": name, "role": "viewer", "created_at": VM["created_at"]} for name in "abc"]})
            ]
        }
    ) as node:
        assert len(twinshare(node, "token", "ls", "--limit", "2").stdout.splitlines()) == 3


def test_columns_are_chosen_by_heading_or_field() -> None:
    with recorded_node({"GET /api/vm": [Answer({"vms": ROWS[:1]})]}) as node:
        assert twinshare(node, *["vm", "ls", "--columns", "name,network,memory"]).stdout.splitlines() == [
            "NAME  NETWORK  MEMORY",
            "a     default  1024 MiB",
        ]
        for options in ("--columns colour", "--sort colour", "--filter colour=red", "--filter red"):
            result = twinshare(node, *f"vm ls {options}".split())
            assert (result.exit_code, "colour" in result.stderr or "FIELD=VALUE" in result.stderr) == (2, True)


def test_a_table_fits_the_terminal() -> None:
    row = VM | {"image": "registry.example/a/very/long/name/of/an/image:" + "x" * 80}
    terminal, theirs = pty.openpty()
    try:
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        with recorded_node({"GET /api/vm": [Answer({"vms": [row]})]}) as node:
            command = [sys.executable, "-m", "twinshare", "vm", "ls"]
            environment = {**os.environ, "TWINSHARE_API": node.url}
            subprocess.run(command, stdout=theirs, timeout=60, env=environment, check=True)
        lines = os.read(terminal, 65536).decode().splitlines()
    finally:
        os.close(terminal)
        os.close(theirs)
    assert max(map(len, lines)) <= 60
    assert "…" in lines[1]
    assert "example-vm" in lines[1]


def test_columns_without_room_are_left_out_and_named() -> None:
    assert readable([10, 40, 20], 24) == 2
    assert readable([10, 40, 20], 26) == 3
    assert readable([40, 4], 3) == 1
    terminal, theirs = pty.openpty()
    try:
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        with recorded_node({"GET /api/vm": [Answer({"vms": [VM]})]}) as node:
            command = [sys.executable, "-m", "twinshare", "vm", "ls"]
            environment = {**os.environ, "TWINSHARE_API": node.url}
            done = subprocess.run(
                command, stdout=theirs, stderr=subprocess.PIPE, timeout=60, env=environment, check=True, text=True
            )
        lines = os.read(terminal, 65536).decode().splitlines()
    finally:
        os.close(terminal)
        os.close(theirs)
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("NAME        STATUS")
    assert done.stderr.startswith("no room for the columns ")


def test_a_mistyped_token_gets_the_nearest() -> None:
    missing = failed("token_not_found", 404, "no token named 'robt'")
    tokens = Answer({"tokens": [{"name": "robot", "role": "viewer", "created_at": VM["created_at"]}]})
    with recorded_node({"DELETE /api/tokens/robt": [missing], "GET /api/tokens": [tokens]}) as node:
        assert "did you mean 'robot'?" in twinshare(node, "token", "revoke", "robt").stderr


def test_widths_give_way_from_the_widest() -> None:
    assert fit([10, 40, 20], 60) == [10, 26, 20]
    assert fit([10, 4], 60) == [10, 4]
    assert fit([100, 100, 2], 3) == [100, 4, 2]
    assert fit([100], 3) == [100]


# The end


def test_ctrl_c_is_exit_code_130() -> None:
    part = Answer({"text": "", "offset": 0, "next_offset": 0})
    with recorded_node({"GET /api/vm/web/log": [part]}) as node:
        command = [sys.executable, "-m", "twinshare", "vm", "logs", "-f", "web"]
        environment = {**os.environ, "TWINSHARE_API": node.url}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        wait_for_requests(node, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (130, "")


def wait_for_requests(node: RecordedNode, process: subprocess.Popen[str]) -> None:
    while len(node.seen) < 2:
        assert process.poll() is None


def test_a_mac_is_given_and_shown() -> None:
    mac = "02:00:5e:10:00:01"
    with recorded_node({"POST /api/vm": done(), "GET /api/vm/web": [Answer(VM | {"mac": mac})]}) as node:
        assert twinshare(node, "vm", "create", "web", "--image", "tiny", "--mac", mac).exit_code == 0
        assert node.seen[0].json == {"name": "web", "image": "tiny", "mac": mac}
        assert f"mac:        {mac}\n" in twinshare(node, "vm", "show", "web").stdout
        refused = twinshare(node, "vm", "create", "web", "--image", "tiny", "--mac", "01:00:5e:00:00:01")
    assert "mac must be a unicast address" in refused.stderr
