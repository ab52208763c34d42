"""Logins of docker's configuration file: kept in it, or by a credential helper that it names.

A helper is a program `docker-credential-NAME` of this user: it gets the server's address and answers with JSON. It is
run without a shell, bounded in time and output, and what it writes is never logged. All of it is blocking.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from ....protocols.bounded.json import check_json

log = structlog.get_logger(__name__)

HELPER_TIMEOUT = 20.0
"""Seconds: a helper may ask a service of the cloud."""
_MAX_FILE = 1 << 20
_MAX_ANSWER = 64 << 10
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
IDENTITY_TOKEN = "<token>"  # noqa: S105 - what helpers write in place of a name
"""The name of a login whose secret is an identity token: it is exchanged for one that a registry takes."""

Login = tuple[str, str]
"""A name and its secret."""


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct, rename={"helpers": "credHelpers", "store": "credsStore"}):
    auths: dict[str, _Auth | None] = {}
    helpers: dict[str, str] = {}
    store: str = ""


class _Answer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def docker_login(names: Sequence[str]) -> Login | None:
    """Return the login at a registry that has these names: of its own helper, of the general one, or of the file."""
    folder = os.environ.get("DOCKER_CONFIG") or str(Path("~/.docker").expanduser())
    config = _read(Path(folder) / "config.json")
    if config is None:
        return None
    for name in names:
        if helper := config.helpers.get(name) or config.store:
            login = _ask(helper, name)
            if login is not None:
                return login
    entries = (config.auths.get(name) for name in names)
    return next((login for entry in entries if entry is not None and (login := _of(entry))), None)


def _read(path: Path) -> _Config | None:
    try:
        if path.stat().st_size > _MAX_FILE:
            return None
        content = path.read_bytes()
        check_json(content)
        return msgspec.json.decode(content, type=_Config)
    except (OSError, ValueError, RecursionError):
        return None


def _of(entry: _Auth) -> Login | None:
    name, password = entry.username, entry.password
    if entry.auth:
        try:
            name, _, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
        except ValueError:
            return None
    if entry.identitytoken:
        return IDENTITY_TOKEN, entry.identitytoken
    return (name, password.rstrip("\0")) if name else None


def _ask(helper: str, name: str) -> Login | None:
    program = shutil.which(f"docker-credential-{helper}") if _HELPER.fullmatch(helper) else None
    if program is None:
        log.warning("docker's configuration names a credential helper that is not installed", helper=helper[:64])
        return None
    output = _run([program, "get"], name.encode())
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # Its words may hold secrets: that it knows nothing of the server is the usual reason.
        log.info("a credential helper has no login", helper=helper, server=name)
        return None
    return (answer.username, answer.secret) if answer.username and answer.secret else None


def _run(command: Sequence[str], given: bytes) -> bytes:
    """What the program writes, or nothing when it fails, takes too long or writes too much."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except OSError:
        return b""
    output = b""
    deadline = threading.Timer(HELPER_TIMEOUT, _kill, [process])
    deadline.start()
    try:
        with process:
            if process.stdin and process.stdout:
                with suppress(BrokenPipeError):  # it need not read what it is given
                    process.stdin.write(given)
                    process.stdin.close()
                output = process.stdout.read(_MAX_ANSWER + 1)
                if len(output) > _MAX_ANSWER:
                    _kill(process)
    finally:
        deadline.cancel()
    return output if process.returncode == 0 else b""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The program and whatever it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
