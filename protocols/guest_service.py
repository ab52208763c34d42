"""The operations inside the guests of one node. Streams (a session's output, a file's content) are in guest.py."""

from __future__ import annotations

from typing import Annotated, Protocol

from msgspec import Meta

from .access import Role
from .guest import (
    DirectoryRequest,
    ExecRequest,
    ExecResult,
    FileEntry,
    FileList,
    GuestReport,
    GuestSession,
    GuestSessionList,
    PathBase64,
    PathText,
    SessionId,
    SignalName,
)
from .routes import rest
from .vm import VmRef

MAX_LISTED = 1000


class GuestService(Protocol):
    """Commands and files inside the guests of one node, for a VM's owner in the role operator and for admins.

    Each operation raises GuestUnreachable when the guest cannot be asked, saying what it lacks.
    """

    @rest(
        "POST",
        "/vm/<vm>/exec",
        Role.OPERATOR,
        journalled=False,
        example={"command": ["sh", "-c", "echo $GREETING"], "env": {"GREETING": "hello"}, "timeout": 30},
    )
    async def exec_vm(self, vm: VmRef, request: ExecRequest) -> ExecResult:
        """Run a command in the guest, and return what it wrote and its exit code when it has ended.

        A caller that hangs up stops waiting; the command goes on in its session. Raises: WrongState, Overloaded.
        """
        ...

    @rest("GET", "/vm/<vm>/sessions", Role.OPERATOR, answer=GuestSessionList)
    async def list_vm_sessions(self, vm: VmRef) -> list[GuestSession]:
        """List the sessions of a VM: commands that run, and those that ended in the last ten minutes."""
        ...

    @rest("GET", "/vm/<vm>/sessions/<session>", Role.OPERATOR)
    async def get_session(self, vm: VmRef, session: SessionId) -> GuestSession:
        """Show one session. Raises: SessionNotFound."""
        ...

    @rest("DELETE", "/vm/<vm>/sessions/<session>", Role.OPERATOR, journalled=False)
    async def end_vm_session(self, vm: VmRef, session: SessionId) -> GuestSession:
        """Kill all processes of a session, and forget it: its output is gone. Raises: SessionNotFound."""
        ...

    @rest(
        "POST",
        "/vm/<vm>/sessions/<session>/signal",
        Role.OPERATOR,
        journalled=False,
        example={"signal": "TERM"},
    )
    async def signal_session(self, vm: VmRef, session: SessionId, signal: SignalName) -> GuestSession:
        """Send a signal to all processes of a session. Raises: SessionNotFound."""
        ...

    @rest("GET", "/vm/<vm>/files", Role.OPERATOR)
    async def list_files(
        self,
        vm: VmRef,
        path: PathText = "",
        path_base64: PathBase64 | None = None,
        after: str | None = None,
        limit: Annotated[int, Meta(ge=1, le=MAX_LISTED)] = MAX_LISTED,
    ) -> FileList:
        """Show a file in the guest, and the files in it where it is a directory. Raises: FileNotFound."""
        ...

    @rest(
        "POST",
        "/vm/<vm>/files",
        Role.OPERATOR,
        journalled=False,
        example={"path": "/srv/data", "mode": 493, "parents": True},
    )
    async def make_directory(self, vm: VmRef, request: DirectoryRequest) -> FileEntry:
        """Make a directory in the guest, or give one that exists this mode and time. Raises: FileNotFound, Conflict."""
        ...

    @rest("DELETE", "/vm/<vm>/file", Role.OPERATOR, journalled=False, in_query=True)
    async def remove_file(
        self, vm: VmRef, path: PathText = "", path_base64: PathBase64 | None = None, recursive: bool = False
    ) -> FileEntry:
        """Remove a file in the guest, or an empty directory; with `recursive` a directory and all that is in it.

        Raises: FileNotFound, Conflict.
        """
        ...

    @rest("GET", "/vm/<vm>/guest", Role.OPERATOR)
    async def show_guest(self, vm: VmRef) -> GuestReport:
        """Show what the guest says about itself: whether it can be asked, its addresses, ports and SSH host keys."""
        ...
