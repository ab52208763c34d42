"""The process environment of the agent: what its starter left is replaced by what the agent needs."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress

# Where the tools are that we start; a service manager or cron may pass less.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MIN_OPEN_FILES = 1024
# What the agent, libvirtd and QEMU need; under a lower inherited limit they would fail in the middle of their work.
_NEEDED = {
    resource.RLIMIT_AS: ("address space (ulimit -v)", resource.RLIM_INFINITY),
    resource.RLIMIT_CPU: ("CPU time (ulimit -t)", resource.RLIM_INFINITY),
    resource.RLIMIT_DATA: ("data size (ulimit -d)", resource.RLIM_INFINITY),
    resource.RLIMIT_FSIZE: ("file size (ulimit -f)", resource.RLIM_INFINITY),
    resource.RLIMIT_NOFILE: ("open files (ulimit -n)", MIN_OPEN_FILES),
}


def tool_environment(home: str = "/") -> dict[str, str]:
    """Return the whole environment of a tool or daemon that we start: its output is in English and in UTF-8."""
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": home}


def reset_environment() -> None:
    """Set umask, signals, limits and PATH of this process, whatever its starter left. For the main thread."""
    os.umask(0o077)
    # An ignored SIGCHLD would reap our children; a blocked SIGTERM would make the agent unstoppable.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for limit, (_, needed) in _NEEDED.items():
        _raise_limit(limit, needed)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # it would hold keys
    known = os.environ.get("PATH", "").split(":")
    os.environ["PATH"] = ":".join(
        [*filter(None, known), *(folder for folder in PATH.split(":") if folder not in known)]
    )


def close_descriptors(*, above: int) -> None:
    """Close every descriptor above this number that was inherited."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the standard library's cheap part, for bare processes
        if int(name) > above:
            with suppress(OSError):  # the listing's own
                os.close(int(name))


def make_directory(path: str | os.PathLike[str], mode: int) -> None:
    """Make a directory with exactly this mode, whatever the umask; one that exists stays as it is. Raises: OSError."""
    with suppress(FileExistsError):
        os.mkdir(path, mode)  # noqa: PTH102 - as above
        os.chmod(path, mode)  # noqa: PTH101 - as above


def limit_problems() -> list[str]:
    """Return a sentence for each hard limit of this process under which VMs may fail."""
    hard = {limit: resource.getrlimit(limit)[1] for limit in _NEEDED}
    return [
        f"The limit of {name} is {hard[limit]} for this agent: VMs may fail. Start the agent without this limit."
        for limit, (name, needed) in _NEEDED.items()
        if _is_below(hard[limit], needed)
    ]


def _raise_limit(limit: int, needed: int) -> None:
    """Raise the soft limit to the hard one; a hard one that is too low is raised where this process may."""
    hard = resource.getrlimit(limit)[1]
    if _is_below(hard, needed):
        with suppress(OSError, ValueError):  # not privileged: `limit_problems` names it
            resource.setrlimit(limit, (needed, needed))
            return
    resource.setrlimit(limit, (hard, hard))


def _is_below(value: int, needed: int) -> bool:
    if resource.RLIM_INFINITY in (value, needed):
        return value != resource.RLIM_INFINITY
    return value < needed
