"""The SSH key of a data directory: seeds put its public half into guests, the command line logs in with it."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import atomic_write, disk_errors_named

FOLDER = "ssh"
NAME = "id_ed25519"


def private_key_file(data_dir: Path) -> Path:
    return data_dir / FOLDER / NAME


def ensure_ssh_key(data_dir: Path, comment: str) -> str:
    """Return the public key as a line of authorized_keys; a new pair is made where there is none. Blocking.

    `comment` says whose it is. The agent and any number of commands may come here at once: one pair is kept.

    Raises: InsufficientResources, OSError.
    """
    private = private_key_file(data_dir)
    public = private.with_suffix(".pub")
    private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with disk_errors_named("the SSH key"), _locked(private.parent):
        if not private.exists():
            _make(private)
        if not public.exists():
            atomic_write(public, f"{_public(private)} {_words(comment)}\n".encode(), mode=0o644)
    return public.read_text().strip()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One thread of one process at a time is in the block. Raises: OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make(private: Path) -> None:
    # The library is loaded by the first who needs a key.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    atomic_write(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))


def _public(private: Path) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

    key = load_ssh_private_key(private.read_bytes(), None)
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _words(text: str) -> str:
    """A comment is part of one line, and of a shell script."""
    return re.sub(r"[^\w@. -]", "-", text, flags=re.ASCII)
