"""`twinshare lab`: several nodes on this machine, joined to one fleet, for trying things out and for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import click
import msgspec

from ...protocols.access import Role
from ...protocols.peer import InviteRequest
from .node import NodeClient, RunningAgent, read_running_agent
from .output import Column, print_json, print_table, say

READY_WITHIN = 60.0
END_WITHIN = 20.0
DEFAULT_DIR = "twinshare-lab"
FLEET_WITHIN = 20.0
TICKET_LIFE = 600
COLUMNS: list[Column] = [
    ("NAME", lambda agent: agent.name),
    ("URL", lambda agent: agent.api_url),
    ("DATA", lambda agent: agent.data_dir),
]


@click.group()
def lab() -> None:
    """Several nodes on this machine.

    \b
    twinshare lab up 3        until Ctrl-C
    twinshare lab down        from another terminal
    """


@lab.command()
@click.argument("count", type=click.IntRange(1, 64), metavar="N")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_DIR,
              show_default=True, help="Where the nodes keep everything.")  # fmt: skip
@click.option("--hypervisor", metavar="URI", help="For every node, as for `twinshare agent`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document once all are ready.")
def up(count: int, folder: Path, hypervisor: str | None, as_json: bool) -> None:
    """Start N nodes named node-1 … node-N, all admins of one fleet, and end them with Ctrl-C or SIGTERM."""
    folder.mkdir(parents=True, exist_ok=True)
    stop = _Stop()
    with _lab_file(folder, hypervisor), contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(_node(folder, 1, hypervisor, []))]
        agents = [_ready(*nodes[0], stop)]
        # On new ports each time: a member that comes back asks the first, as one asks its configured peers.
        first = agents[0].addresses
        nodes += [stack.enter_context(_node(folder, number, hypervisor, first)) for number in range(2, count + 1)]
        agents += [_ready(process, place, stop) for process, place in nodes[1:]]
        if stop.asked:
            return
        _join(agents)
        _wait_for_fleet(agents, stop)
        if as_json:
            print_json(agents)
        else:
            print_table(agents, COLUMNS)
            say("Ctrl-C ends them; their VMs run on.")
        sys.stdout.flush()
        _watch(nodes, stop)


def _watch(nodes: Sequence[tuple[subprocess.Popen[bytes], Path]], stop: _Stop) -> None:
    """Wait for the end. A node that dies is reported, and the others go on.

    Raises: ClickException when none is left.
    """
    living = list(nodes)
    while not stop.asked:
        for process, place in living:
            if process.poll() is not None:
                say(f"{place.name} ended with {process.returncode}; see {place}.log")
        living = [(process, place) for process, place in living if process.returncode is None]
        if not living:
            raise click.ClickException("no node of the lab is left")
        time.sleep(0.1)


@lab.command()
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_DIR,
              show_default=True, help="As given to `lab up`.")  # fmt: skip
def down(folder: Path) -> None:
    """End the nodes that `lab up` started in a folder, also those that outlived it."""
    state = _read_lab(folder)
    found = state is not None
    if state is not None and _is_command(state.pid, "lab"):
        os.kill(state.pid, signal.SIGTERM)
        _wait_for_end(state.pid, READY_WITHIN + END_WITHIN)
    for place in sorted(folder.glob("node-*/")):
        agent = read_running_agent(place)
        if agent is not None and _is_command(agent.pid, "agent", place.name):
            found = True
            os.kill(agent.pid, signal.SIGTERM)
            _wait_for_end(agent.pid, END_WITHIN)
        if (place / "agent.json").exists():
            found = True
            _clean_up(place, state.hypervisor if state is not None else None)
    _lab_path(folder).unlink(missing_ok=True)
    say(f"the lab in {folder} has ended" if found else f"no lab runs in {folder}")


def _is_command(pid: int, *words: str) -> bool:
    """Return whether a process is a command of ours with these words, not another one that has its number now."""
    try:
        arguments = [Path(word.decode()).name for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    except OSError:
        return False
    return set(words) <= set(arguments)


def _wait_for_end(pid: int, timeout: float) -> None:
    """Wait until a process has ended; kill it after `timeout` seconds."""
    ends = time.monotonic() + timeout
    while _is_alive(pid):
        if time.monotonic() > ends:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        # The state stands after the name in brackets; a zombie has ended.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class _Stop:
    """Whether somebody asked for the end."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class _Lab(msgspec.Struct, frozen=True):
    """What `lab up` leaves for `lab down`."""

    pid: int
    hypervisor: str | None = None


def _lab_path(folder: Path) -> Path:
    return folder / "lab.json"


def _read_lab(folder: Path) -> _Lab | None:
    try:
        return msgspec.json.decode(_lab_path(folder).read_bytes(), type=_Lab)
    except (OSError, msgspec.MsgspecError):
        return None


@contextlib.contextmanager
def _lab_file(folder: Path, hypervisor: str | None) -> Iterator[None]:
    known = _read_lab(folder)
    if known is not None and _is_command(known.pid, "lab"):
        raise click.ClickException(f"a lab runs in {folder}; end it with: twinshare lab down --dir {folder}")
    _lab_path(folder).write_bytes(msgspec.json.encode(_Lab(os.getpid(), hypervisor)))
    try:
        yield
    finally:
        _lab_path(folder).unlink(missing_ok=True)


def _start(place: Path, hypervisor: str | None, bootstrap: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start one node; in a session of its own, so that Ctrl-C reaches it through us and in order."""
    command = [sys.executable, "-m", "twinshare", "agent", "--data-dir", str(place), "--name", place.name]
    command += ["--api", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0"]
    command += ["--hypervisor", hypervisor] if hypervisor else []
    for address in bootstrap:
        command += ["--bootstrap", address]
    with Path(f"{place}.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _clean_up(place: Path, hypervisor: str | None) -> None:
    """Start a node that was killed and end it in order: it knows which daemons it left, and which VMs run on."""
    process = _start(place, hypervisor, [])
    ends = time.monotonic() + READY_WITHIN
    while process.poll() is None and time.monotonic() < ends:
        if (agent := read_running_agent(place)) is not None and agent.pid == process.pid:
            break
        time.sleep(0.02)
    _end(process)


@contextlib.contextmanager
def _node(
    folder: Path, number: int, hypervisor: str | None, bootstrap: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run one node for as long as the block lasts."""
    place = folder / f"node-{number}"
    process = _start(place, hypervisor, bootstrap)
    try:
        yield process, place
    finally:
        _end(process)
        if (place / "agent.json").exists():
            _clean_up(place, hypervisor)


def _ready(process: subprocess.Popen[bytes], place: Path, stop: _Stop) -> RunningAgent:
    ends = time.monotonic() + READY_WITHIN
    while not stop.asked:
        if (agent := read_running_agent(place)) is not None and agent.pid == process.pid:
            return agent
        if process.poll() is not None or time.monotonic() > ends:
            raise click.ClickException(f"{place.name} did not start; see {place}.log")
        time.sleep(0.02)
    raise click.Abort


def _client(agent: RunningAgent) -> NodeClient:
    token = (Path(agent.data_dir) / "admin.token").read_text().strip()
    return NodeClient(agent.api_url, token)


def _join(agents: Sequence[RunningAgent]) -> None:
    """The first invites, the others join; who is a member already stays what it is."""
    first = _client(agents[0])
    known = {peer.id for peer in first.call("list_peers")}
    for agent in agents[1:]:
        if agent.peer_id in known:
            continue
        request = InviteRequest(role=Role.ADMIN, expires=TICKET_LIFE, uses=1)
        ticket = first.call("invite_peer", {"invite": request})
        client = _client(agent)
        client.call("join_fleet", {"ticket": ticket.ticket})
        client.close()
    first.close()


def _wait_for_fleet(agents: Sequence[RunningAgent], stop: _Stop) -> None:
    """Until every node lists every other one as online."""
    clients = {agent.peer_id: _client(agent) for agent in agents}
    ends = time.monotonic() + FLEET_WITHIN
    while not stop.asked:
        missing = {
            f"{agent.name} does not see {other.name}"
            for agent in agents
            for other in agents
            if other is not agent and other.peer_id not in _online(clients[agent.peer_id])
        }
        if not missing:
            break
        if time.monotonic() > ends:
            raise click.ClickException(f"the nodes do not find each other: {min(missing)}")
        time.sleep(0.05)
    for client in clients.values():
        client.close()


def _online(client: NodeClient) -> set[str]:
    return {peer.id for peer in client.call("list_peers") if peer.status == "online"}
