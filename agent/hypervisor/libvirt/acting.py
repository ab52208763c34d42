"""Touch files as somebody else: in folders that an unprivileged user owns, root must not follow that user's links.

Linux keeps the file system's user per thread, so this reaches no other thread of the agent. With it go the capabilities
that let root pass every permission; so the folder is opened before, and named by that: its parents may be closed to the
user, as root's home is.
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
def acting_as(user: str | None, folder: Path) -> Iterator[Path]:
    """Run the body, which must not wait, with the file rights of `user`; None changes nothing. Gives `folder`'s name.

    Raises: KeyError for an unknown user, PermissionError when we may not become that user.
    """
    if user is None:
        yield folder
        return
    account = pwd.getpwnam(user)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    group, own = _libc.setfsgid(account.pw_gid), _libc.setfsuid(account.pw_uid)
    try:
        # The only way to learn whether it worked is to ask again.
        if _libc.setfsuid(-1) != account.pw_uid:
            raise PermissionError(f"cannot act as the user {user}")
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        _libc.setfsuid(own)
        _libc.setfsgid(group)
        os.close(descriptor)
