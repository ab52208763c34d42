"""Starts processes without `subprocess`, which loads threads and more. Also who a user is."""

import grp
import os
import pwd
from _signal import SIG_DFL, SIGKILL, SIGSTOP, signal  # pyright: ignore[reportMissingImports] - signal itself loads enum
from errno import EACCES, ENOENT
from fcntl import ioctl

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_FOUND, NOT_EXECUTABLE = 127, 126
SET_CONTROLLING_TERMINAL = 0x540E  # an ioctl of Linux on x86 and ARM
SIGNALS = [number for number in range(1, 32) if number not in (SIGKILL, SIGSTOP)]


class User:
    """A user of the guest; the one that the program runs as by default. Raises: KeyError for an unknown one."""

    def __init__(self, name: str) -> None:
        try:
            entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.getuid())
        except KeyError:
            if name:
                raise KeyError(name) from None
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


class Child:
    """A process to start, the first of a session of its own: the descriptors are its stdin, stdout and stderr."""

    def __init__(self, argv: "list[bytes]", user: User, env: "dict[bytes, bytes]", fds: "tuple[int, int, int]") -> None:
        self.argv, self.user, self.env, self.fds = argv, user, env, fds
        self.workdir = b""
        self.terminal = False

    def start(self) -> int:
        """Return the process ID.

        What fails in the child is written on its stderr, and the child exits with 127 or 126, as a shell does.
        """
        if not self.terminal and self.user.uid == os.getuid() and min(self.fds) > 2 and hasattr(os, "posix_spawn"):
            try:
                return self._spawn()
            except (OSError, NotImplementedError, ValueError):
                pass  # the child that is forked says why
        pid = os.fork()
        if not pid:
            self._run()
        return pid

    def _spawn(self) -> int:
        """Start it without a copy of this process, whose pages a fork copies. Raises: OSError, NotImplementedError."""
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(self.fds)]
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self.workdir:
                os.chdir(self.workdir)
            path = next((path for path in _paths(self.argv, self.env) if os.access(path, os.X_OK)), self.argv[0])
            return os.posix_spawn(path, self.argv, self.env, file_actions=actions, setsid=True, setsigdef=SIGNALS)
        finally:
            os.fchdir(here)
            os.close(here)

    def _run(self) -> None:
        """What the child does after the fork."""
        code = NOT_EXECUTABLE
        try:
            os.setsid()
            if self.terminal:
                ioctl(self.fds[0], SET_CONTROLLING_TERMINAL, 0)
            for number, fd in enumerate(self.fds):
                os.dup2(fd, number)
            self.user.become()
            if self.workdir:
                os.chdir(self.workdir)
            for number in SIGNALS:
                signal(number, SIG_DFL)
            _exec(self.argv, self.env)
        except FileNotFoundError as error:
            code = NOT_FOUND
            _complain(error, self.argv)
        except (OSError, KeyError, ValueError) as error:
            _complain(error, self.argv)
        finally:
            os._exit(code)  # whatever happened: nothing of the program's own runs on in the child


def _paths(argv: "list[bytes]", env: "dict[bytes, bytes]") -> "list[bytes]":
    """Where the program may be."""
    if b"/" in argv[0]:
        return [argv[0]]
    return [os.path.join(folder or b".", argv[0]) for folder in env.get(b"PATH", PATH.encode()).split(b":")]


def _exec(argv: "list[bytes]", env: "dict[bytes, bytes]") -> None:
    """Raises: OSError."""
    if b"/" in argv[0]:
        os.execve(argv[0], argv, env)
    denied = None
    for path in _paths(argv, env):
        try:
            os.execve(path, argv, env)
        except OSError as error:
            if error.errno == EACCES:
                denied = error
    raise denied or FileNotFoundError(ENOENT, os.strerror(ENOENT))


def _complain(error: Exception, argv: "list[bytes]") -> None:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    where = getattr(error, "filename", None) or argv[0]
    try:
        os.write(2, b"%s: %s\n" % (os.fsencode(where), str(reason).encode()))
    except OSError:
        pass  # nobody reads it
