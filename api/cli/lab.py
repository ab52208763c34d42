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

from ...protocols.access import Role
from ...protocols.peer import InviteRequest
from .node import Card, NodeClient, running_card
from .output import print_json, print_table, say

READY_WITHIN = 60.0
END_WITHIN = 20.0
DEFAULT_DIR = "twinshare-lab"
FLEET_WITHIN = 20.0
TICKET_LIFE = 600


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
    with _pid_file(folder / "lab.pid"), contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(_node(folder, 1, hypervisor, []))]
        cards = [_ready(*nodes[0], stop)]
        # On new ports each time: whoever comes back asks the first, as a node asks the ones it is configured with.
        first = cards[0].addresses
        nodes += [stack.enter_context(_node(folder, number, hypervisor, first)) for number in range(2, count + 1)]
        cards += [_ready(process, place, stop) for process, place in nodes[1:]]
        if stop.asked:
            return
        _join(cards)
        _wait_for_fleet(cards, stop)
        if as_json:
            print_json(cards)
        else:
            print_table(cards, [("NAME", lambda card: card.name), ("URL", lambda card: card.api_url),
                                ("DATA", lambda card: card.data_dir)])  # fmt: skip
            say("Ctrl-C ends them; their VMs run on.")
        sys.stdout.flush()
        while not stop.asked:
            for process, place in nodes:
                if process.poll() is not None:
                    raise click.ClickException(f"{place.name} ended with {process.returncode}; see {place}.log")
            time.sleep(0.1)


@lab.command()
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_DIR,
              show_default=True, help="As given to `lab up`.")  # fmt: skip
def down(folder: Path) -> None:
    """End the nodes that `lab up` started in a folder."""
    try:
        pid = int((folder / "lab.pid").read_text())
        os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        say(f"no lab runs in {folder}")
        return
    ends = time.monotonic() + END_WITHIN
    while (folder / "lab.pid").exists() and time.monotonic() < ends:
        time.sleep(0.05)
    say(f"the lab in {folder} has ended")


class _Stop:
    """Whether somebody asked for the end."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@contextlib.contextmanager
def _pid_file(file: Path) -> Iterator[None]:
    try:
        os.kill(int(file.read_text()), 0)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        pass
    else:
        raise click.ClickException(f"a lab runs in {file.parent}; end it with: twinshare lab down --dir {file.parent}")
    file.write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _node(
    folder: Path, number: int, hypervisor: str | None, bootstrap: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """One node's process; a session of its own, so that Ctrl-C reaches it through us and in order."""
    place = folder / f"node-{number}"
    command = [sys.executable, "-m", "twinshare", "agent", "--data-dir", str(place), "--name", place.name]
    command += ["--api", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0"]
    command += ["--hypervisor", hypervisor] if hypervisor else []
    for address in bootstrap:
        command += ["--bootstrap", address]
    with Path(f"{place}.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process, place
    finally:
        process.terminate()
        try:
            process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], place: Path, stop: _Stop) -> Card:
    ends = time.monotonic() + READY_WITHIN
    while not stop.asked:
        if (card := running_card(place)) is not None and card.pid == process.pid:
            return card
        if process.poll() is not None or time.monotonic() > ends:
            raise click.ClickException(f"{place.name} did not start; see {place}.log")
        time.sleep(0.02)
    raise click.Abort


def _client(card: Card) -> NodeClient:
    token = (Path(card.data_dir) / "admin.token").read_text().strip()
    return NodeClient(card.api_url, token)


def _join(cards: Sequence[Card]) -> None:
    """The first invites, the others join; who is a member already stays what it is."""
    first = _client(cards[0])
    known = {peer.id for peer in first.call("list_peers")}
    for card in cards[1:]:
        if card.peer_id in known:
            continue
        request = InviteRequest(role=Role.ADMIN, expires=TICKET_LIFE, uses=1)
        ticket = first.call("invite_peer", {"invite": request})
        client = _client(card)
        client.call("join_fleet", {"ticket": ticket.ticket})
        client.close()
    first.close()


def _wait_for_fleet(cards: Sequence[Card], stop: _Stop) -> None:
    """Until every node lists every other one as online."""
    clients = {card.peer_id: _client(card) for card in cards}
    ends = time.monotonic() + FLEET_WITHIN
    while not stop.asked:
        missing = {
            f"{card.name} does not see {other.name}"
            for card in cards
            for other in cards
            if other is not card and other.peer_id not in _online(clients[card.peer_id])
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
