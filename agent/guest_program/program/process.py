"""Starts processes: fork and exec by hand, because `subprocess` loads threads and more. Also who a user is."""

import grp
import os
import pwd
from _signal import SIG_DFL, SIGKILL, SIGSTOP, signal  # pyright: ignore[reportMissingImports] - signal itself loads enum
from errno import EACCES, ENOENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_FOUND, NOT_EXECUTABLE = 127, 126


class User:
    """A user of the guest; the one that the program runs as by default. Raises: KeyError for an unknown one."""

    def __init__(self, name: str) -> None:
        try:
            entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.getuid())
        except KeyError:
            if name:
                raise
            entry = pwd.struct_passwd(("root", "x", os.getuid(), os.getgid(), "", "/root", "/bin/sh"))
        self.name, self.uid, self.gid = entry.pw_name, entry.pw_uid, entry.pw_gid
        self.home, self.shell = entry.pw_dir, entry.pw_shell or "/bin/sh"

    def become(self) -> None:
        """Only root can, and only root must."""
        if self.uid == os.getuid():
            return
        groups = [one.gr_gid for one in grp.getgrall() if self.name in one.gr_mem]
        os.setgroups([self.gid] + groups)
        os.setgid(self.gid)
        os.setuid(self.uid)

    def environment(self) -> "dict[bytes, bytes]":
        own = {"PATH": PATH, "HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        inherited = [name for name in ("LANG", "TZ") if name in os.environ]
        if self.uid == os.getuid():
            inherited += [name for name in ("PATH", "HOME") if name in os.environ]
        own.update((name, os.environ[name]) for name in inherited)
        return {os.fsencode(name): os.fsencode(value) for name, value in own.items()}


def spawn(argv: "list[bytes]", env: "dict[bytes, bytes]", prepare: "Callable[[], None]", error_fd: int) -> int:
    """Fork, call `prepare()` in the child, and exec. Returns the child's process ID.

    What fails in the child is written on `error_fd`, which the child knows as its own stderr when `prepare` has made it
    so, and the child exits with 127 or 126, as a shell does.
    """
    pid = os.fork()
    if pid:
        return pid
    code = NOT_EXECUTABLE
    try:
        prepare()
        for number in range(1, 32):
            if number not in (SIGKILL, SIGSTOP):
                signal(number, SIG_DFL)
        _exec(argv, env)
    except FileNotFoundError as error:
        code = NOT_FOUND
        _complain(error_fd, error, argv)
    except (OSError, KeyError, ValueError) as error:
        _complain(error_fd, error, argv)
    finally:
        os._exit(code)  # whatever happened: nothing of the program's own runs on in the child
    return 0


def _exec(argv: "list[bytes]", env: "dict[bytes, bytes]") -> None:
    """Raises: OSError."""
    if b"/" in argv[0]:
        os.execve(argv[0], argv, env)
    denied = None
    for folder in env.get(b"PATH", PATH.encode()).split(b":"):
        try:
            os.execve(os.path.join(folder or b".", argv[0]), argv, env)
        except OSError as error:
            if error.errno == EACCES:
                denied = error
    raise denied or FileNotFoundError(ENOENT, os.strerror(ENOENT))


def _complain(fd: int, error: Exception, argv: "list[bytes]") -> None:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    where = getattr(error, "filename", None) or argv[0]
    try:
        os.write(fd, b"%s: %s\n" % (os.fsencode(where), str(reason).encode()))
    except OSError:
        pass  # nobody reads it
