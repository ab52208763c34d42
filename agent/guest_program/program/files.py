"""Files of the guest: described, listed, made and removed. Their content is in content.py."""

import os
import stat

from .process import User
from .stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PAGE = 192 * 1024
"""Bytes of one page of a directory, about."""
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


def locate(path: bytes) -> bytes:
    """A relative path is one of the user's home."""
    return os.path.join(os.fsencode(os.environ.get("HOME") or User("").home), path)


def describe(path: bytes, *, follow: bool = False) -> "dict[str, Any]":
    """Raises: OSError."""
    found = os.stat(path) if follow else os.lstat(path)
    kind = KINDS.get(stat.S_IFMT(found.st_mode), "other")
    entry: "dict[str, Any]" = {
        "name": os.path.basename(path.rstrip(b"/")) or b"/",
        "kind": kind,
        "size": found.st_size,
        "mode": stat.S_IMODE(found.st_mode),
        "modified": found.st_mtime,
    }
    if kind == "link":
        entry["target"] = os.readlink(path)
    return entry


class FileCall(Stream):
    """What is done at once: list, make, remove."""

    def start(self, request: "dict[str, Any]") -> None:
        call = {"list": self._list, "make": self._make, "remove": self._remove}[request["do"]]
        call(locate(request["path"]), request)

    def _list(self, path: bytes, request: "dict[str, Any]") -> None:
        entry = describe(path, follow=True)
        if entry["kind"] != "directory":
            self._answer(file=entry, files=[], more=False)
            return
        after, limit, size = request["after"], request["limit"], 0
        files: "list[dict[str, Any]]" = []
        names = sorted(name for name in os.listdir(path) if name > after)
        for name in names:
            if len(files) >= limit or size > PAGE:
                break
            try:
                files.append(describe(os.path.join(path, name)))
            except FileNotFoundError:
                continue  # it was removed at this moment
            size += 100 + len(name) + len(files[-1].get("target", b""))
        self._answer(file=entry, files=files, more=bool(files) and files[-1]["name"] != names[-1])

    def _make(self, path: bytes, request: "dict[str, Any]") -> None:
        mode = request["mode"]
        if request["parents"]:
            os.makedirs(path, exist_ok=True)
        elif not os.path.isdir(path):
            os.mkdir(path)
        if request["user"]:
            user = User(request["user"])
            os.chown(path, user.uid, user.gid)
        if mode is not None:
            os.chmod(path, mode)
        if request["modified"] is not None:
            os.utime(path, (request["modified"], request["modified"]))
        self._answer(file=describe(path))

    def _remove(self, path: bytes, request: "dict[str, Any]") -> None:
        entry = describe(path)
        if entry["kind"] != "directory":
            os.unlink(path)
        elif request["recursive"]:
            _remove_tree(path)
        else:
            os.rmdir(path)
        self._answer(file=entry)

    def _answer(self, **result: "Any") -> None:
        self.is_open()
        self.end(**result)


def discard(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # somebody else has removed it


def _remove_tree(path: bytes) -> None:
    """Links are removed, not followed. Raises: OSError."""
    for folder, folders, files in os.walk(path, topdown=False, onerror=_raise):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            below = os.path.join(folder, name)
            if os.path.islink(below):
                os.unlink(below)
            else:
                os.rmdir(below)
    os.rmdir(path)


def _raise(error: OSError) -> None:
    raise error
