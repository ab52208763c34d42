"""Short commands by the QEMU guest agent, for guests in which no program serves the channel.

It has no streams: output comes at the end, and more than `MAX_OUTPUT` of it would make the agent fail. So there is no
terminal and no input, and a shell in the guest cuts the output.
Format: QEMU guest agent protocol reference, `guest-exec` and `guest-exec-status`.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from signal import SIGTERM
from typing import Annotated, TypeVar

import msgspec
import trio
from msgspec import Meta

from ...protocols.errors import GuestRefused, GuestUnreachable
from ...protocols.guest import ExecRequest
from ...protocols.guest_channel import ERR, OUT, EndReply
from ..backoff import Backoff

Ask = Callable[[str, Mapping[str, object]], Awaitable[object]]
"""Sends one command to the guest agent. Raises: Unsupported, GuestRefused, WrongState, DeadlineExceeded."""
MAX_OUTPUT = 64 << 10
"""Bytes of stdout, and of stderr, that are kept."""
MAX_COMMAND = 32 << 10
TIMEOUT = 60
"""Seconds for a command that names none."""
LONGEST = 3600
GRACE = 30.0
"""Seconds after its time-out in which a command has to end."""
TIMED_OUT = 124
_LIMITS = "the QEMU guest agent can only run short commands: as root, without a terminal and without input"
# Both outputs are cut by a `head` of their own, and the exit code takes another way past them.
_SCRIPT = f"""exec 3>&1
cd "$1" && shift || exit 127
code=$({{ {{ {{ timeout "$@" 3>&- 4>&- 5>&-; echo $? >&4; }} 2>&5 | head -c {MAX_OUTPUT} >&3; }} 5>&1 |
    head -c {MAX_OUTPUT} >&2; }} 4>&1)
exit "${{code:-125}}"
"""

Kind = TypeVar("Kind", bound=msgspec.Struct)
_Output = Annotated[str, Meta(max_length=4 * MAX_OUTPUT)]


class _Started(msgspec.Struct, frozen=True):
    pid: Annotated[int, Meta(ge=0, le=1 << 32)]


class _Status(msgspec.Struct, frozen=True, rename="kebab"):
    exited: bool
    exitcode: Annotated[int, Meta(ge=0, le=255)] | None = None
    signal: Annotated[int, Meta(ge=1, le=255)] | None = None
    out_data: _Output = ""
    err_data: _Output = ""


class AgentCommand:
    """One command, started by the guest agent."""

    def __init__(self, ask: Ask, pid: int, timeout: int) -> None:
        self._ask, self._pid, self._timeout = ask, pid, timeout
        self._began = trio.current_time()

    async def wait(self) -> tuple[Sequence[tuple[int, bytes]], EndReply]:
        """Return its output, in pieces of stdout and stderr, and its end.

        Raises: GuestUnreachable when it has no end; what `Ask` raises.
        """
        backoff = Backoff(0.05, 1.0)
        with trio.move_on_after(self._timeout + GRACE):
            while True:
                answer = await self._ask("guest-exec-status", {"pid": self._pid})
                status = _read(answer, _Status)
                if status.exited:
                    return _result(status, timed_out=trio.current_time() >= self._began + self._timeout)
                await trio.sleep(backoff.next())
        raise GuestUnreachable("the guest agent does not report the end of the command")


async def start_by_agent(ask: Ask, request: ExecRequest) -> AgentCommand:
    """Start a command. Raises: GuestUnreachable when it is not one for the guest agent; what `Ask` raises."""
    timeout = min(request.timeout or TIMEOUT, LONGEST)
    arguments = {"path": "/bin/sh", "arg": ["-c", _SCRIPT, "sh", *_words(request, timeout)], "capture-output": True}
    started = _read(await ask("guest-exec", arguments), _Started)
    return AgentCommand(ask, started.pid, timeout)


def _words(request: ExecRequest, timeout: int) -> Sequence[str]:
    """The script's arguments. Raises: GuestUnreachable."""
    try:
        command = [word.decode() for word in request.argv()]
    except UnicodeDecodeError:
        raise GuestUnreachable(_LIMITS) from None
    settings = [f"{name}={value}" for name, value in request.env.items()]
    words = [request.workdir or "/", str(timeout), "env", *settings, *command]
    if request.terminal or request.user not in ("", "root") or request.stdin_bytes():
        raise GuestUnreachable(_LIMITS)
    if sum(len(word.encode()) for word in words) > MAX_COMMAND:
        raise GuestUnreachable(f"{_LIMITS}; the command line may have {MAX_COMMAND} bytes")
    return words


def _read(answer: object, kind: type[Kind]) -> Kind:
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError:
        raise GuestRefused("the guest agent's answer is malformed") from None


def _result(status: _Status, *, timed_out: bool) -> tuple[Sequence[tuple[int, bytes]], EndReply]:
    try:
        output = [
            (channel, b64decode(data, validate=True))
            for channel, data in ((OUT, status.out_data), (ERR, status.err_data))
        ]
    except ValueError:
        raise GuestRefused("the guest agent's answer is malformed") from None
    pieces = [(channel, data) for channel, data in output if data]
    # The `timeout` of busybox ends with the code of the signal.
    code = TIMED_OUT if timed_out and status.exitcode == 128 + SIGTERM else status.exitcode
    return pieces, EndReply(offset=sum(len(data) for _, data in pieces), code=code, signal=status.signal)
