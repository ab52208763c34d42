"""Commands and files inside a guest: the types of the operations. The streams are in guest_stream.py.

A session is one command that was started in a guest, with or without a terminal. It outlives the connections of its
clients: each byte of its output has an offset, stdout and stderr counted together, and a client that was cut off
attaches again with the offset at which it stopped.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from .bodies import Body
from .errors import InvalidRequest
from .secrets import UNTIL_END

MAX_COMMAND = 128 << 10
"""Bytes of a command line, and of an environment."""
MAX_COLLECTED = 256 << 10
"""Bytes of stdout and of stderr that `exec_vm` returns, each; the session has the rest."""
TIMED_OUT = 124
"""The exit code of a command that did not end within its timeout, as coreutils' `timeout` has it."""

Text = Annotated[str, Meta(max_length=MAX_COMMAND)]
Base64 = Annotated[str, Meta(max_length=MAX_COMMAND * 2, pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
GuestPath = Annotated[str, Meta(min_length=1, max_length=4096, description="a path in the guest")]
PathBase64 = Annotated[
    str, Meta(max_length=5464, pattern=r"^[A-Za-z0-9+/]*={0,2}$", description="the 4096 bytes of a path at most")
]
"""It stands in the address of a request, and fits into its head."""
PathText = Annotated[str, Meta(max_length=4096, description="a path in the guest")]
SessionId = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
WriterId = Annotated[str, Meta(pattern="^([0-9a-f]{16})?$")]
Offset = Annotated[int, Meta(ge=0, le=1 << 62)]
Size = Annotated[int, Meta(ge=1, le=10_000)]
Modified = Annotated[float, Meta(ge=0, le=1 << 40, description="seconds since 1970")]
UserName = Annotated[str, Meta(max_length=64, pattern="^([A-Za-z0-9_][A-Za-z0-9_.-]*)?$")]
SIGNALS = ("HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "TSTP", "WINCH")
SignalName = Annotated[str, Meta(pattern=f"^({'|'.join(SIGNALS)})$")]


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A command to run in a guest. `timeout` in seconds; `workdir` is the user's home, `user` is root by default.

    `command_base64`, `workdir_base64` and `stdin_base64` take the place of the fields without `_base64` for what is not
    UTF-8; `env_base64` has more of the environment, NAME=VALUE each. With `detach` the
    answer comes when the command has started; its output and stdin are reached by attaching to the session.
    `interactive` leaves stdin open for those who attach. `terminal` gives it a terminal, whose output is all stdout.
    """

    command: Annotated[list[Text], Meta(max_length=4096)] = []
    command_base64: Annotated[list[Base64], Meta(max_length=4096)] = []
    env: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=4096)], Text], Meta(max_length=1024), UNTIL_END
    ] = {}
    env_base64: Annotated[list[Base64], Meta(max_length=1024), UNTIL_END] = []
    workdir: Annotated[str, Meta(max_length=4096)] = ""
    workdir_base64: PathBase64 | None = None
    user: UserName = ""
    stdin: Annotated[Annotated[str, Meta(max_length=512 << 10)] | None, UNTIL_END] = None
    stdin_base64: Annotated[
        Annotated[str, Meta(max_length=512 << 10, pattern=r"^[A-Za-z0-9+/]*={0,2}$")] | None, UNTIL_END
    ] = None
    timeout: Annotated[int, Meta(ge=1, le=7 * 86400)] | None = None
    detach: bool = False
    interactive: bool = False
    terminal: bool = False
    columns: Size = 80
    rows: Size = 24

    def __post_init__(self) -> None:
        if not (self.command or self.command_base64):
            raise ValueError("command must name a program")
        if self.command and self.command_base64:
            raise ValueError("command and command_base64 are one or the other")
        if self.stdin is not None and self.stdin_base64 is not None:
            raise ValueError("stdin and stdin_base64 are one or the other")
        if self.interactive and not (self.detach or self.terminal):
            raise ValueError("interactive is for a session that somebody attaches to: ask for detach as well")
        if self.workdir and self.workdir_base64 is not None:
            raise ValueError("workdir and workdir_base64 are one or the other")
        environment = self.environment()
        parts = [*self.argv(), *environment, *environment.values(), self.workdir_bytes()]
        if any(b"\0" in part for part in parts) or any("=" in name for name in self.env):
            raise ValueError("command, env and workdir must not contain NUL, nor a name in env '='")
        sizes = len(self.argv_bytes()), sum(len(name) + len(value) + 2 for name, value in environment.items())
        if max(sizes) > MAX_COMMAND:
            raise ValueError(f"the command line and the environment may have {MAX_COMMAND} bytes each")

    def argv(self) -> list[bytes]:
        """The command line. Raises: ValueError for wrong base64."""
        return [text.encode() for text in self.command] or [b64decode(text) for text in self.command_base64]

    def argv_bytes(self) -> bytes:
        """The command line as the kernel counts it: each argument ends in NUL."""
        return b"".join(part + b"\0" for part in self.argv())

    def environment(self) -> dict[bytes, bytes]:
        """The variables that are given. Raises: ValueError for wrong base64, and for what is no NAME=VALUE."""
        found = {name.encode(): value.encode() for name, value in self.env.items()}
        for text in self.env_base64:
            name, sign, value = b64decode(text).partition(b"=")
            if not (name and sign):
                raise ValueError("env_base64 must have NAME=VALUE in each")
            found[name] = value
        return found

    def workdir_bytes(self) -> bytes:
        """Raises: ValueError for wrong base64."""
        return self.workdir.encode() if self.workdir_base64 is None else b64decode(self.workdir_base64)

    def stdin_bytes(self) -> bytes:
        """What the command reads first. Raises: ValueError for wrong base64."""
        if self.stdin_base64 is not None:
            return b64decode(self.stdin_base64)
        return (self.stdin or "").encode()


class SessionState(StrEnum):
    """`lost`: the guest was restarted, or its VM is gone, and nobody knows how the command ended."""

    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"
    UNKNOWN = "unknown"


class GuestSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command in a guest. Offsets in bytes: its output is kept from `first_offset` to `offset`.

    `exit_code` is None while it runs and when it was ended by `signal`, unless that was its timeout (124).
    `input_offset` counts the bytes of stdin that were accepted.
    """

    id: str
    vm: str
    command: list[str]
    state: SessionState
    started_at: datetime
    owner: str = "local"
    user: str = ""
    terminal: bool = False
    ended_at: datetime | None = None
    exit_code: int | None = None
    signal: str | None = None
    first_offset: int = 0
    offset: int = 0
    input_offset: int = 0
    reason: str | None = None


class GuestSessionList(Body, frozen=True, kw_only=True):
    sessions: list[GuestSession]


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a command wrote, and how it ended; `…_base64` where it is not UTF-8.

    `truncated`: there is more output than is returned; attach to the session for it, up to ten minutes after the end.
    """

    session: str
    exit_code: int | None = None
    signal: str | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_base64: str | None = None
    stderr_base64: str | None = None
    truncated: bool = False

    @property
    def stdout_bytes(self) -> bytes:
        return self.stdout.encode() if self.stdout_base64 is None else b64decode(self.stdout_base64)

    @property
    def stderr_bytes(self) -> bytes:
        return self.stderr.encode() if self.stderr_base64 is None else b64decode(self.stderr_base64)


class FileKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"
    UNKNOWN = "unknown"


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file in a guest. `size` in bytes, `mode` are the permission bits; `target` is where a link leads.

    A name that is not UTF-8 is whole in `name_base64`; `name` then has replacement characters.
    """

    name: str
    kind: FileKind
    size: int
    mode: int
    modified: datetime
    name_base64: str | None = None
    target: str | None = None

    @property
    def name_bytes(self) -> bytes:
        return self.name.encode() if self.name_base64 is None else b64decode(self.name_base64)


class WrittenFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was written. `digest` is the BLAKE2b (32 bytes, hex) of its content, which the guest has verified."""

    file: FileEntry | None
    digest: str | None = None


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a directory, in the order of names; `next` is the `after` of the next page.

    `entry` is what the path names, a link followed; `files` is empty unless that is a directory.
    """

    entry: FileEntry
    files: list[FileEntry]
    next: str | None = None


class DirectoryRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A directory to make; `parents` makes those above it too. `mode` are the permission bits."""

    path: PathText = ""
    path_base64: PathBase64 | None = None
    mode: Annotated[int, Meta(ge=0, le=0o7777)] | None = None
    modified: Modified | None = None
    parents: bool = False
    user: UserName = ""


class ListeningPort(msgspec.Struct, frozen=True, kw_only=True):
    """A TCP port that a process in the guest listens on; `address` is the guest's own, `0.0.0.0` or `::` for any."""

    port: int
    address: str


class GuestReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a guest says about itself through its channel. All of it is the guest's word and may be wrong.

    `ready`: commands, files and connections work. Otherwise `missing` says what the guest lacks. `booting`: it was
    started a short while ago, and is waited for.
    """

    ready: bool
    missing: str | None = None
    booting: bool = False
    hostname: str = ""
    addresses: list[str] = []
    listening: list[ListeningPort] = []
    host_keys: list[str] = []
    ssh: bool = False


def text_or_base64(data: bytes) -> tuple[str, str | None]:
    """Bytes as text, and as base64 where they are not UTF-8; the text is then empty."""
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return "", b64encode(data).decode()


def path_bytes(path: str, path_base64: str | None) -> bytes:
    """The path that a caller names by text or by base64. Raises: InvalidRequest."""
    if path and path_base64:
        raise InvalidRequest("path and path_base64 are one or the other", path="path_base64")
    try:
        found = b64decode(path_base64, validate=True) if path_base64 else path.encode()
    except ValueError:
        raise InvalidRequest("path_base64 is not base64", path="path_base64") from None
    if not found or b"\0" in found:
        raise InvalidRequest("path must name a file in the guest", path="path")
    return found
