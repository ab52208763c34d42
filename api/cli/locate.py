"""Which node the command line talks to, and with which token."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...agent.config import ConfigError, default_data_dir, load_config
from ...protocols.errors import InvalidRequest
from ..exchange import NodeUnreachable

SERVICE_DATA_DIR = Path("/var/lib/twinshare")


class Card(msgspec.Struct, frozen=True):
    """What a running agent tells about itself in `agent.json`."""

    pid: int
    name: str
    api_url: str
    version: str = ""
    data_dir: str = ""
    peer_id: str = ""
    addresses: list[str] = []


@dataclass(frozen=True, slots=True)
class Place:
    """A node's URL, and the token to show there."""

    url: str
    token: str | None


def data_dirs() -> list[Path]:
    """Where nodes of this machine keep their files; the one that is named is the only one."""
    if "TWINSHARE_DATA_DIR" in os.environ:
        return [default_data_dir()]
    try:
        configured = load_config().node.data_dir
    except ConfigError:
        configured = ""
    return [Path(configured)] if configured else [default_data_dir(), SERVICE_DATA_DIR]


def running_card(data_dir: Path) -> Card | None:
    """The agent that runs on `data_dir`; the file of one that was killed does not count."""
    try:
        card = msgspec.json.decode((data_dir / "agent.json").read_bytes(), type=Card)
        os.kill(card.pid, 0)
    except PermissionError as error:
        # A process of another user is there all the same; an unreadable file is no node of ours.
        return None if error.filename else card
    except (OSError, msgspec.MsgspecError):
        return None
    return card


def find_node() -> Place:
    """Raises: NodeUnreachable when no node runs here; InvalidRequest when it is not clear which one is meant."""
    token = os.environ.get("TWINSHARE_TOKEN")
    if url := os.environ.get("TWINSHARE_API"):
        return Place(url, token)
    dirs = data_dirs()
    running = [(path, card) for path in dirs if (card := running_card(path)) is not None]
    if not running:
        looked = " and ".join(map(str, dirs))
        raise NodeUnreachable(
            f"no node is running here (looked in {looked}); start one with 'twinshare agent', or name one by its URL "
            "in $TWINSHARE_API"
        )
    if len(running) > 1:
        found = ", ".join(f"{card.name} ({path})" for path, card in running)
        raise InvalidRequest(f"several nodes run here: {found}; choose one with $TWINSHARE_DATA_DIR")
    path, card = running[0]
    return Place(card.api_url, token or _read_token(path))


def _read_token(data_dir: Path) -> str | None:
    try:
        return (data_dir / "admin.token").read_text().strip()
    except OSError:
        return None
