"""The node's own libvirtd: unprivileged, in the node's directory; it outlives the agent while guests run.

Below its folder: `r` runtime (sockets, live state), `c` configuration (definitions), `k` cache, `d` data.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import struct
from contextlib import suppress
from pathlib import Path

import structlog
import trio

from ....protocols.errors import HypervisorDown
from ...environment import PATH, tool_environment
from ...files import atomic_write
from ..sandbox.port import ProcessHandle, SandboxPort
from .fsuid import as_fs_user

log = structlog.get_logger(__name__)

INSTALL = "apt-get install --no-install-recommends libvirt-daemon libvirt-daemon-driver-qemu qemu-system-x86 qemu-utils"
# With the default of five concurrent requests, five calls to hung guests would block the sixth, even `destroy`.
_DAEMON_CONF = """\
max_client_requests = 64
max_workers = 32
prio_workers = 8
log_outputs = "3:stderr"
"""
QEMU_CONF = """\
stdio_handler = "file"
security_driver = "none"
seccomp_sandbox = 1
"""
_STOP_TIMEOUT = 5.0
_OUTPUT_LINES, _OUTPUT_LENGTH = 3, 500  # of a daemon that ended, for `problems`


class PrivateDaemon:
    """Configured by `prepare`, started by `ensure` when needed; the running daemon of a former agent is used again."""

    def __init__(self, sandbox: SandboxPort) -> None:
        self._sandbox = sandbox
        self._root = sandbox.path / "hypervisor"
        self._socket = self._root / "r/libvirt/libvirt-sock"
        self.log = self._root / "daemon.log"
        self._process: ProcessHandle | None = None
        self.is_new = False  # started by us, not connected to yet

    @property
    def uri(self) -> str:
        return f"qemu+unix:///session?socket={self._socket}"

    async def prepare(self) -> None:
        """Make folders and configuration. Raises: HypervisorDown, also when libvirtd or QEMU is not installed."""
        for names in (("virtqemud", "libvirtd"), ("qemu-system-x86_64",)):
            if not any(shutil.which(name, path=PATH) for name in names):
                raise HypervisorDown(f"{names[-1]} is not installed; run: {INSTALL}")
        try:
            await trio.to_thread.run_sync(self._make_folders)
            await trio.to_thread.run_sync(self.sweep)
        except OSError as error:
            reason = error.strerror or error
            raise HypervisorDown(f"the folder of the private libvirtd cannot be prepared: {reason}") from error

    @property
    def user(self) -> str | None:
        return self._sandbox.user

    @property
    def uid(self) -> int:
        return os.geteuid() if self.user is None else pwd.getpwnam(self.user).pw_uid

    def sweep(self) -> None:
        """Remove what libvirt leaves of domains that are gone: QEMU's log. Blocks."""
        with as_fs_user(self.user, self._root) as root:
            for log_file in (root / "k/libvirt/qemu/log").glob("*.log"):
                definition = f"libvirt/qemu/{log_file.stem}.xml"
                live = f"libvirt/qemu/run/{log_file.stem}.xml"
                if not ((root / "c" / definition).exists() or (root / "r" / live).exists()):
                    log_file.unlink(missing_ok=True)

    async def ensure(self) -> None:
        """Start the daemon unless one listens. Raises: HypervisorDown when it ended at once."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self.detach()
            output = self._last_output()
            log.warning("the private libvirtd ended", code=code, output=output)
            if self.is_new:
                raise HypervisorDown(f"the private libvirtd ended at once with exit code {code}: {output}")
        if self._process is None and self.listener() is None:
            await self._spawn()

    def listener(self) -> int | None:
        """Return the pid of the process that listens on the socket, from the kernel; None when none does."""
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(str(self._socket))
            pid, uid, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid == self._root.stat().st_uid:
                return int(pid)
        return None

    def detach(self) -> None:
        """Close the process handle without ending the process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    async def kill(self) -> None:
        """Kill a daemon that hangs. Its guests run on and the next daemon finds them."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Terminate it, and kill it after a timeout."""
        with trio.move_on_after(_STOP_TIMEOUT):
            await self._end(signal.SIGTERM)
            return
        await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> None:
        pid = self.listener() or (self._process.pid if self._process else None)
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            while not _has_ended(pid, self._process):  # noqa: ASYNC110 - the end of a former agent's process sends no event
                await trio.sleep(0.01)
        self.detach()

    def _make_folders(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._sandbox.user is not None:
            account = pwd.getpwnam(self._sandbox.user)
            os.chown(self._root, account.pw_uid, account.pw_gid, follow_symlinks=False)
        with as_fs_user(self.user, self._root) as root:
            root.chmod(0o700)
            status = root.stat()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text() + f"{status.st_dev}:{status.st_ino}\n"
            mark = root / "r/boot"
            if not mark.exists() or mark.read_text() != boot:
                # After a reboot, or in a copy, nothing recorded there is ours: libvirt would take it for guests that
                # crashed, and kill the processes that have their pids.
                shutil.rmtree(root / "r", ignore_errors=True)
            for folder in ("r", "c/libvirt", "k", "d"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            config = root / "c/libvirt"
            files = {mark: boot, config / "libvirtd.conf": _DAEMON_CONF, config / "qemu.conf": QEMU_CONF}
            for path, text in files.items():
                atomic_write(path, text.encode(), durable=False)

    async def _spawn(self) -> None:
        program = shutil.which("virtqemud", path=PATH) or shutil.which("libvirtd", path=PATH) or "libvirtd"
        environment = {
            **tool_environment(str(self._root)),
            "XDG_RUNTIME_DIR": str(self._root / "r"),
            "XDG_CONFIG_HOME": str(self._root / "c"),
            "XDG_CACHE_HOME": str(self._root / "k"),
            "XDG_DATA_HOME": str(self._root / "d"),
        }
        argv = [
            program,
            "-f",
            str(self._root / "c/libvirt/libvirtd.conf"),
            "--pid-file",
            str(self._root / "r/daemon.pid"),
        ]
        with as_fs_user(self.user, self._root) as root:
            (root / "daemon.log").write_bytes(b"")
        self._process = await self._sandbox.spawn(argv, env=environment, stderr=self.log)
        self.is_new = True

    def _last_output(self) -> str:
        with suppress(OSError), as_fs_user(self.user, self._root) as root:
            lines = (root / "daemon.log").read_text(errors="replace").splitlines()
            return "; ".join(lines[-_OUTPUT_LINES:])[-_OUTPUT_LENGTH:] or "it printed nothing"
        return "its log cannot be read"


def _has_ended(pid: int, process: ProcessHandle | None) -> bool:
    if process is not None and process.pid == pid:
        return process.poll() is not None
    return not Path(f"/proc/{pid}").exists()
