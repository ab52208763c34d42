"""What ssh needs here: a key of this user for guests, and the host keys that guests tell through their channel."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ...agent.config import default_data_dir
from ...agent.files import atomic_write
from ...agent.ssh_key import ensure_ssh_key, private_key_file
from ...protocols.errors import InvalidRequest

_KEY = re.compile(r"[a-z0-9@.-]{1,64} [A-Za-z0-9+/]{16,8192}={0,2}")
_HASHED = "|1|"
_HOST = re.compile(r"[A-Za-z0-9.-]{1,255}")


def ssh_directory() -> Path:
    """Return the directory of the key and of the known hosts. Raises: InvalidRequest."""
    found = private_key_file(default_data_dir()).parent
    try:
        found.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"{found} cannot be made: {error.strerror}") from None
    return found


def user_key() -> str:
    """Return the public key that guests get, made at first use: the node's own, when this is its data directory."""
    ssh_directory()
    return ensure_ssh_key(default_data_dir(), "twinshare")


def ssh_options(proxy_command: str) -> Sequence[tuple[str, str]]:
    """Return the options with which the system's ssh reaches a guest."""
    directory = ssh_directory()
    user_key()
    return [
        ("User", "root"),
        ("ProxyCommand", proxy_command),
        ("IdentityFile", str(private_key_file(default_data_dir()))),
        ("UserKnownHostsFile", str(directory / "known_hosts")),
        # Keys that came through the channel are in the file already, and another one is refused.
        ("StrictHostKeyChecking", "accept-new"),
        # A key that ssh accepts must show of which host it is: that of a former VM of the name goes.
        ("HashKnownHosts", "no"),
        ("CheckHostIP", "no"),
    ]


class HostKeys:
    """The file of known hosts. Each line ends in the id of the VM: a new VM of the same name has new keys.

    A line without an id is a key that ssh accepted itself; a comment names the VM that it is of.
    """

    def __init__(self) -> None:
        self.file = ssh_directory() / "known_hosts"

    def keep(self, host: str, vm: str, keys: Iterable[str]) -> None:
        """Write the keys of a guest for `host`; those of a former VM of the name go."""
        good = [key for key in keys if _KEY.fullmatch(key)]

        def renew(lines: Sequence[str]) -> Sequence[str]:
            return [f"{host} {key} {vm}" for key in good] or [line for line in lines if line.endswith(f" {vm}")]

        self._rewrite(host, renew)

    def accept(self, host: str, vm: str, *, again: bool = False) -> None:
        """Let ssh accept the key of `host`, unless one of this VM is known; `again` even then: it makes new ones."""

        def renew(lines: Sequence[str]) -> Sequence[str]:
            known = any(line.endswith(f" {vm}") for line in lines) and not again
            return lines if known else [f"# {host} {vm}"]

        self._rewrite(host, renew)

    def _rewrite(self, host: str, renew: Callable[[Sequence[str]], Sequence[str]]) -> None:
        """Replace the lines of `host`. Raises: InvalidRequest."""
        if not _HOST.fullmatch(host):
            raise InvalidRequest(f"{host!r} is no host name")
        with self.file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lines = self.file.read_text().splitlines() if self.file.exists() else []
            # Where the system has ssh hash the names of hosts, nobody can tell of which VM a former version's line is.
            lines, former = [line for line in lines if not line.startswith(_HASHED)], lines
            others = [line for line in lines if line.removeprefix("# ").split(" ")[0] != host]
            ours = renew([line for line in lines if line not in others])
            if [*others, *ours] != former:
                atomic_write(self.file, "".join(f"{line}\n" for line in [*others, *ours]).encode())
                self.file.chmod(0o600)
