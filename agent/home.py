"""The data directory of a node: its lock, its files, and what it tells others about the running agent."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import atomic_write, disk_errors_named


class HomeError(Exception):
    """The data directory cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Home:
    """The files of one node, under one directory."""

    path: Path

    @property
    def identity_key(self) -> Path:
        return self.path / "identity.key"

    @property
    def database(self) -> Path:
        return self.path / "twinshare.db"

    @property
    def agent_file(self) -> Path:
        """`agent.json`: there while the agent is ready."""
        return self.path / "agent.json"

    @property
    def admin_token(self) -> Path:
        return self.path / "admin.token"

    def write_agent_file(self, running: Mapping[str, Any]) -> None:
        """Tell how the running agent is reached: whole or not at all."""
        atomic_write(self.agent_file, json.dumps(running, indent=2).encode() + b"\n", mode=0o644)

    def remove_agent_file(self) -> None:
        """Remove `agent.json`. Where the disk cannot be written it stays: who reads it finds no such process."""
        with suppress(OSError):
            self.agent_file.unlink(missing_ok=True)

    def ensure_admin_token(self) -> str:
        """The token of this node's own command line, made on the first start; mode 0600.

        Raises: InsufficientResources when the disk is full.
        """
        if self.admin_token.is_file():
            return self.admin_token.read_text().strip()
        token = secrets.token_urlsafe(32)
        with disk_errors_named("the token of the command line"):
            atomic_write(self.admin_token, token.encode() + b"\n")
        return token


@contextmanager
def locked_home(path: Path) -> Iterator[Home]:
    """Make the directory and hold it: one agent a directory.

    The lock is the kernel's, so a killed agent leaves none behind.
    Raises: HomeError, naming the process that holds it.
    """
    with _named_errors(path):
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise HomeError(
                f"another agent (pid {holder}) runs on {path}; stop it or choose another --data-dir"
            ) from None
        home = Home(path.resolve())
        with _named_errors(path):
            # Of one length, and in the place of the former one: on a full disk nothing could be added.
            os.pwrite(lock, f"{os.getpid():<10}\n".encode(), 0)
            home.agent_file.unlink(missing_ok=True)
        try:
            yield home
        finally:
            home.remove_agent_file()
    finally:
        os.close(lock)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HomeError(f"the data directory {path} cannot be used: {error.strerror}") from None
