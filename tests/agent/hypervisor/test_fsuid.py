"""Files are touched as somebody else, with that user's rights alone and wherever the folder lies."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from twinshare.agent.hypervisor.libvirt.fsuid import as_fs_user

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root to act as another user")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of `nobody`, below one that is closed to them."""
    folder = tmp_path / "closed/theirs"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return folder


def test_the_user_reaches_their_folder_below_a_closed_one(theirs: Path) -> None:
    with as_fs_user("nobody", theirs) as folder:
        folder.chmod(0o700)
        (folder / "a/b").mkdir(parents=True)
        (folder / "a/file").write_text("x")
    assert (theirs / "a/file").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert theirs.stat().st_mode & 0o777 == 0o700


def test_the_user_gets_no_further_than_their_rights(theirs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's own")
    secret.chmod(0o600)
    (theirs / "link").symlink_to(secret)
    with as_fs_user("nobody", theirs) as folder, pytest.raises(PermissionError):
        (folder / "link").read_text()
    assert secret.read_text() == "root's own"


def test_no_user_changes_nothing(tmp_path: Path) -> None:
    with as_fs_user(None, tmp_path) as folder:
        assert folder == tmp_path
