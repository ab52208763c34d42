"""The guest program as one file: a zip archive, and the command line that runs it."""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path

PACKAGE = "twinshare_guest"
PORT = "org.twinshare.guest.0"
PORT_PATH = f"/dev/virtio-ports/{PORT}"
_SOURCE = Path(__file__).with_name("program")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def program_files() -> dict[str, bytes]:
    """The modules of the program by their name in the package."""
    return {file.name: file.read_bytes() for file in sorted(_SOURCE.glob("*.py"))}


@functools.cache
def program_zip() -> bytes:
    """The archive. The same modules give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in program_files().items():
            archive.writestr(zipfile.ZipInfo(f"{PACKAGE}/{name}", _EPOCH), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def start_code(archive: str, port: str) -> str:
    """What `python3 -S -E -c` runs: `-m` and the archive itself would load modules that nothing else needs."""
    return f"import sys; sys.path.insert(0, {archive!r}); from {PACKAGE}.main import main; main([{port!r}])"
