"""Archives from outside: what the tools write is read, what would take memory or time is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest

from twinshare.agent.images import tar
from twinshare.agent.images.tar import MAX_EXTENDED_HEADER, MAX_MEMBERS, TarRefused, file_in_folder, open_tar

DISK = bytes(range(256)) * 300
LONG = "disk/" + "n" * 180 + ".img"


def archive(*names: str, form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as writer:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(DISK)
            writer.addfile(member, io.BytesIO(DISK))
    return made.getvalue()


def pieces(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


def disk_in(content: bytes, max_size: int = 1 << 30) -> bytes | None:
    with open_tar(pieces(content), max_size=max_size) as opened:
        found = file_in_folder(opened, "disk")
        return found.read() if found else None


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_forms_that_tools_write(form: int) -> None:
    for name in ("disk/a.img", "./disk/a.img", "/disk/a.img", *([LONG] if form != tarfile.USTAR_FORMAT else [])):
        assert disk_in(archive("other", "disk/.hidden", "disk/deeper/x", name, form=form)) == DISK
    assert disk_in(archive("other", form=form)) is None


def header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("a")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def records(**given: str) -> bytes:
    body = b"".join(
        b"%d %s=%s\n" % (length(name, value), name.encode(), value.encode()) for name, value in given.items()
    )
    return (
        header(tarfile.XHDTYPE, len(body)) + body.ljust(-(-len(body) // 512) * 512, b"\0") + header(tarfile.REGTYPE, 0)
    )


def length(name: str, value: str) -> int:
    plain = len(name) + len(value) + 3
    return plain + len(str(plain + 1 if plain > 8 else plain))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (header(tarfile.XHDTYPE, MAX_EXTENDED_HEADER + 1), "extended header"),
        (header(tarfile.XGLTYPE, 1 << 33), "extended header"),
        (header(tarfile.GNUTYPE_LONGNAME, 1 << 33), "extended header"),
        (header(tarfile.GNUTYPE_SPARSE, 1 << 33), "sparse"),
        (records(**{"GNU.sparse.map": "0,1"}), "sparse"),
        (records(**{"GNU.sparse.size": "1"}), "sparse"),
        (records(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "sparse"),
        (header(tarfile.XGLTYPE, 0) * 5000, "recursion"),
        (header(tarfile.REGTYPE, 0) * (MAX_MEMBERS + 2), "members"),
        (b"no archive at all".ljust(600), "."),
        (header(tarfile.REGTYPE, 1 << 40), "."),
    ],
)
def test_what_would_take_memory_or_time_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(TarRefused, match=why):
        disk_in(content)


def test_behind_the_end_of_an_archive_little_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of 1 TiB that is not there was skipped in a hundred million reads, for two minutes."""
    reads, plain = 0, tar._Stream.read

    def read(stream: tar._Stream, size: int = -1) -> bytes:
        nonlocal reads
        reads += 1
        if reads > 1000:
            pytest.fail("it reads on behind the end")
        return plain(stream, size)

    monkeypatch.setattr(tar._Stream, "read", read)
    with pytest.raises(TarRefused, match="early"):
        disk_in(header(tarfile.REGTYPE, 1 << 40), max_size=1 << 50)


def test_an_archive_has_a_bound_in_all() -> None:
    with pytest.raises(TarRefused, match="larger"):
        disk_in(archive("other", "disk/a.img"), max_size=len(DISK))
