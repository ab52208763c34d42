"""The atomic write: the old file or the new one, a mode that no umask changes, no link that is followed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from twinshare.agent.files import atomic_file, atomic_write
from twinshare.agent.home import Home


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_the_mode_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    for mode in (0o600, 0o644, 0o444):
        atomic_write(tmp_path / "file", b"content", mode=mode)
        assert (tmp_path / "file").stat().st_mode & 0o7777 == mode
    Home(tmp_path).write_agent_file({"pid": 1})
    assert (tmp_path / "agent.json").stat().st_mode & 0o7777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    atomic_write(file, b"old")

    def fail(fd: int) -> None:
        os.write(fd, b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"), atomic_file(file) as fd:
        fail(fd)

    def refuse(_fd: int) -> None:
        raise PermissionError("not yours")

    with pytest.raises(PermissionError):
        atomic_write(file, b"new", own=refuse)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_at_the_temporary_name_leads_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".file.new").symlink_to(victim)
    atomic_write(tmp_path / "file", b"content")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"content"
    assert not (tmp_path / "file").is_symlink()


@pytest.mark.parametrize("durable", [True, False])
def test_file_and_directory_are_synced_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(fd: int) -> None:
        calls.append("directory" if Path(f"/proc/self/fd/{fd}").is_dir() else "file")
        fsync(fd)

    def seen_replace(path: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    atomic_write(tmp_path / "file", b"content", durable=durable)
    assert calls == (["file", "rename", "directory"] if durable else ["rename"])


def test_the_new_owner_gets_the_file_before_its_name(tmp_path: Path) -> None:
    owned: list[bool] = []
    atomic_write(tmp_path / "file", b"content", own=lambda _fd: owned.append((tmp_path / "file").exists()))
    assert owned == [False]
