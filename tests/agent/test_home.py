"""The data directory: held by one agent, secret files secret, the identity for ever the same."""

import multiprocessing
import os
from pathlib import Path

import pytest

from twinshare.agent.home import HomeError, locked_home
from twinshare.agent.identity import IdentityError, load_identity
from twinshare.protocols.base58 import peer_id_of, public_key_of


def test_a_second_agent_is_refused_by_the_first_ones_pid(tmp_path: Path) -> None:
    with (
        locked_home(tmp_path / "home"),
        pytest.raises(HomeError, match=f"pid {os.getpid()}"),
        locked_home(tmp_path / "home"),
    ):
        pass
    with locked_home(tmp_path / "home"):
        pass


def _hold_and_die(path: Path) -> None:
    with locked_home(path) as home:
        home.write_agent_file({"pid": os.getpid()})
        os._exit(9)


def test_a_killed_agent_leaves_no_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_hold_and_die, args=(tmp_path,))
    process.start()
    process.join(10)
    assert (tmp_path / "agent.json").exists()
    with locked_home(tmp_path) as home:
        assert not home.agent_file.exists()


def test_the_identity_stays_and_is_secret(tmp_path: Path) -> None:
    file = tmp_path / "identity.key"
    first = load_identity(file)
    assert load_identity(file).peer_id == first.peer_id
    assert file.stat().st_mode & 0o777 == 0o600
    assert first.peer_id.startswith("12D3KooW")
    assert peer_id_of(public_key_of(first.peer_id)) == first.peer_id
    assert first.seed.hex() not in repr(first)


def test_a_damaged_or_open_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "identity.key"
    load_identity(file)
    file.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_identity(file)
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(IdentityError, match="damaged"):
        load_identity(file)
