"""Fetches packages from the machine's own apt sources and reads files out of them; nothing is installed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from ....protocols.errors import RegistryFailed, Unsupported

ASK_TIMEOUT = 60.0
FETCH_TIMEOUT = 600.0
_WORD = re.compile(r"^\s*([a-z0-9][a-z0-9+.-]+)")


@dataclass(frozen=True, slots=True)
class Package:
    """One package of the archive; `depends` names the first choice of each dependency."""

    name: str
    version: str
    sha256: str
    depends: tuple[str, ...]


class Packages:
    """The archive as this machine's apt knows it. Debs are kept in `folder`, and asked for once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._options: list[str] = []

    async def open(self) -> None:
        """Raises: Unsupported where there is no apt."""
        missing = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(tool) is None]
        if missing:
            raise Unsupported(f"tiny is built by apt from Debian or Ubuntu packages, and there is no {missing[0]} here")
        for name in ("debs", "lists/partial", "archives/partial"):
            await trio.Path(self._folder / name).mkdir(parents=True, exist_ok=True)

    async def refresh(self) -> None:
        """Read the archive's lists anew into our own folder: the machine's own may be absent or stale.

        Raises: RegistryFailed.
        """
        self._options = ["-o", f"Dir::State::Lists={self._folder / 'lists'}", "-o", f"Dir::Cache={self._folder}"]
        done = await self._run(["apt-get", "update", "-q"], FETCH_TIMEOUT)
        if done.returncode:
            raise RegistryFailed(f"the package lists cannot be read: {_last_line(done.stderr)}")

    async def show(self, names: Iterable[str]) -> dict[str, Package]:
        """The packages of these names that there are, in the version apt would install."""
        wanted = list(names)
        done = await self._run(["apt-cache", "--no-all-versions", "show", *wanted], ASK_TIMEOUT)
        found: dict[str, Package] = {}
        for stanza in done.stdout.decode(errors="replace").split("\n\n"):
            fields = dict(re.findall(r"^([\w-]+): (.*)$", stanza, re.MULTILINE))
            if fields.get("Package") in wanted and "SHA256" in fields:
                name = fields["Package"]
                depends = ", ".join(fields[key] for key in ("Pre-Depends", "Depends") if key in fields)
                words = tuple(match[1] for part in depends.split(",") if (match := _WORD.match(part)))
                found.setdefault(name, Package(name, fields["Version"], fields["SHA256"], words))
        return found

    async def fetch(self, package: Package) -> Path:
        """The package's file. Raises: RegistryFailed when it cannot be had or is not what the archive signed for."""
        path = self._folder / "debs" / f"{package.name}-{package.sha256[:16]}.deb"
        if await trio.to_thread.run_sync(_has_digest, path, package.sha256):
            return path
        room = trio.Path(self._folder / "debs" / f".{package.name}")
        await trio.to_thread.run_sync(shutil.rmtree, room, True)
        await room.mkdir()
        argv = ["apt-get", "download", "-q", f"{package.name}={package.version}"]
        done = await self._run(argv, FETCH_TIMEOUT, cwd=Path(room))
        files = [Path(file) for file in await room.glob("*.deb")]
        if done.returncode or len(files) != 1:
            raise RegistryFailed(f"the package {package.name} cannot be fetched: {_last_line(done.stderr)}")
        if not await trio.to_thread.run_sync(_has_digest, files[0], package.sha256):
            raise RegistryFailed(f"the package {package.name} is not what the archive's list says")
        files[0].replace(path)
        await room.rmdir()
        return path

    async def _run(
        self, argv: Sequence[str], timeout: float, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        # As root, apt would drop to a user that cannot write in our folder.
        options = [*self._options, "-o", "APT::Sandbox::User=root"]
        with trio.move_on_after(timeout):
            return await trio.run_process(
                [argv[0], *options, *argv[1:]],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd=cwd or self._folder,
                env={**os.environ, "LC_ALL": "C"},
            )
        raise RegistryFailed(f"{argv[0]} {argv[1]} did not end within {timeout:.0f} seconds")


class Deb:
    """The files of a package. The path of each is as it would be installed, without the first slash."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members = {member.name.removeprefix("./"): member for member in archive}

    @property
    def names(self) -> list[str]:
        """The regular files and links, in a fixed order."""
        return sorted(name for name, member in self._members.items() if member.isreg() or member.issym())

    def read(self, name: str) -> bytes:
        """Links are followed within the package. Raises: KeyError."""
        member = self._members[name]
        for _ in range(8):
            if not member.issym():
                break
            name = os.path.normpath(Path(name).parent / member.linkname).lstrip("/")
            member = self._members[name]
        content = self._archive.extractfile(member)
        if content is None:
            raise KeyError(name)
        return content.read()


@contextmanager
def open_deb(deb: Path) -> Iterator[Deb]:
    """Unpack a package into a nameless file and look into it. Blocking. Raises: RegistryFailed."""
    with tempfile.TemporaryFile(dir=deb.parent) as plain:
        done = subprocess.run(
            ["/usr/bin/dpkg-deb", "--fsys-tarfile", str(deb)],
            stdout=plain,
            stderr=subprocess.PIPE,
            timeout=FETCH_TIMEOUT,
        )
        if done.returncode:
            raise RegistryFailed(f"the package file {deb.name} cannot be read: {_last_line(done.stderr)}")
        plain.seek(0)
        with tarfile.open(fileobj=plain, mode="r:") as archive:
            yield Deb(archive)


def _has_digest(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _last_line(stderr: bytes) -> str:
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.startswith("E:")]
    return (lines or ["no reason given"])[-1].removeprefix("E: ")[:300]
