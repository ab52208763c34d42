"""Puts the guest's first file system together from packages and our own files. Blocking; for a worker thread."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath

import zstandard

from ....protocols.errors import Unsupported
from . import guest
from .cpio import Archive
from .elf import module_dependencies, needed_libraries

Read = Callable[[str], bytes]
LIBRARIES = "lib/x86_64-linux-gnu"
LOADER = "ld-linux-x86-64.so.2"


def build_initramfs(
    modules: Mapping[str, Callable[[], bytes]],
    builtin: frozenset[str],
    programs: Mapping[str, bytes],
    libraries: Mapping[str, Callable[[], bytes]],
    others: Mapping[str, bytes],
    scripts: Mapping[str, str],
) -> bytes:
    """The archive. `modules` and `libraries` read a file by its name; `builtin` names what is in the kernel itself.

    `programs`, `scripts` and `others` are files by their paths; those of `programs` get their libraries.

    Raises: Unsupported when a module or a library that is needed is not in the packages.
    """
    archive = Archive()
    for folder in guest.FOLDERS:
        archive.folder(folder)
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3)
    archive.link("bin/sh", "busybox")
    for name, data in sorted(programs.items()):
        archive.file(name, data, 0o755)
    for name, data in sorted(others.items()):
        archive.file(name, data)
    for name, text in scripts.items():
        archive.file(name, text.encode(), 0o755)
    for name, text in guest.TEXTS.items():
        archive.file(name, text.encode())
    chosen = choose_modules(modules, builtin)
    for name, data in chosen.items():
        archive.file(f"lib/modules/{name}.ko", data)
    archive.file("lib/modules.order", "".join(f"{name}\n" for name in chosen).encode())
    for name, data in choose_libraries(programs.values(), libraries).items():
        archive.file(f"{LIBRARIES}/{name}", data, 0o755)
    archive.link(f"lib64/{LOADER}", f"/{LIBRARIES}/{LOADER}")
    return gzip.compress(archive.encode(), 6, mtime=0)


def build_ssh_archive(
    programs: Mapping[str, bytes], libraries: Mapping[str, Callable[[], bytes]], present: Iterable[bytes]
) -> bytes:
    """Return the archive that the guest unpacks when SSH is first needed: programs by their paths, and their libraries.

    The libraries of the programs `present` are in the guest already. Raises: Unsupported when one is not to be had.
    """
    archive = Archive()
    for name, data in sorted(programs.items()):
        archive.file(name, data, 0o755)
    others = choose_libraries(present, libraries)
    for name, data in choose_libraries(programs.values(), libraries).items():
        if name not in others:
            archive.file(f"{LIBRARIES}/{name}", data, 0o755)
    return gzip.compress(archive.encode(), 9, mtime=0)


def choose_modules(modules: Mapping[str, Callable[[], bytes]], builtin: frozenset[str]) -> dict[str, bytes]:
    """The modules the guest takes, each after what it depends on. Raises: Unsupported when one is not to be had."""
    chosen: dict[str, bytes] = {}

    def take(name: str) -> bool:
        if name in chosen or name in builtin:
            return True
        if name not in modules:
            return False
        data = modules[name]()
        if not all(take(_plain(other)) for other in module_dependencies(data)):
            return False
        chosen[name] = data
        return True

    missing = [name for name in guest.REQUIRED_MODULES if not take(name)]
    if missing:
        raise Unsupported(
            f"the distribution's kernel package has no {', '.join(missing)}; tiny cannot be built from it"
        )
    for name in guest.WANTED_MODULES:
        take(name)
    return chosen


def choose_libraries(programs: Iterable[bytes], libraries: Mapping[str, Callable[[], bytes]]) -> dict[str, bytes]:
    """The libraries that programs need, those that these need, and the loader. Raises: Unsupported without one."""
    chosen: dict[str, bytes] = {}
    wanted = [LOADER, *(name for program in programs for name in needed_libraries(program))]
    while wanted:
        name = wanted.pop(0)
        if name in chosen:
            continue
        if name not in libraries:
            raise Unsupported(f"the distribution's packages have no {name}")
        chosen[name] = libraries[name]()
        wanted += needed_libraries(chosen[name])
    return dict(sorted(chosen.items()))


def find_modules(names: list[str], read: Read) -> dict[str, Callable[[], bytes]]:
    """The kernel modules among the files of a package, by name, whatever their compression."""
    return {module: partial(_unpacked, path, read) for module, path in _modules(names)}


def _modules(names: list[str]) -> Iterator[tuple[str, str]]:
    for path in names:
        file = PurePosixPath(path).name
        if ".ko" in file and "/kernel/" in path:
            yield _plain(file.partition(".ko")[0]), path


def _plain(name: str) -> str:
    """Module names are written with dashes or underscores as one likes."""
    return name.replace("-", "_")


def _unpacked(path: str, read: Read) -> bytes:
    data = read(path)
    if path.endswith(".xz"):
        return lzma.decompress(data)
    if path.endswith(".zst"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if path.endswith(".gz"):
        return gzip.decompress(data)
    return data
