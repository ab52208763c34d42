"""File access as another user: in folders of an unprivileged user, root must not follow that user's links.

Linux keeps the file system user ID per thread, so no other thread of the agent is affected. With it go the capabilities
that let root bypass permissions; so the folder is opened before, and named by its descriptor: its parents may be closed
to the user, as root's home is.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def as_fs_user(user: str | None, folder: Path) -> Iterator[Path]:
    """Run the body, which must not await, with the file rights of `user` (None: our own). Yields a path to `folder`.

    Raises: KeyError for an unknown user, PermissionError when we may not become that user.
    """
    if user is None:
        yield folder
        return
    account = pwd.getpwnam(user)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    group, own = _libc.setfsgid(account.pw_gid), _libc.setfsuid(account.pw_uid)
    try:
        # setfsuid reports no error: a second call returns what is set.
        if _libc.setfsuid(-1) != account.pw_uid:
            raise PermissionError(f"cannot access files as the user {user}")
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        _libc.setfsuid(own)
        _libc.setfsgid(group)
        os.close(descriptor)
