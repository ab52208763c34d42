"""The output of a session on disk: every byte once with its offset, the last ones kept, crashes survived."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from twinshare.agent.guest.output_log import KEPT, OutputLog, open_output_log
from twinshare.protocols.errors import InsufficientResources


def read_all(log: OutputLog, offset: int = 0, size: int = 1000) -> list[tuple[int, int, bytes]]:
    found = []
    while pieces := log.read(offset, size):
        found += pieces
        offset = pieces[-1][0] + len(pieces[-1][2])
    return found


def test_each_byte_has_its_offset_and_channel(tmp_path: Path) -> None:
    log = open_output_log(tmp_path, "s")
    log.append([(1, b"abc"), (2, b"de"), (1, b"")])
    log.append([(1, b"f")])
    assert read_all(log) == [(0, 1, b"abc"), (3, 2, b"de"), (5, 1, b"f")]
    assert read_all(log, 1, 1) == [(1, 1, b"bc"), (3, 2, b"de"), (5, 1, b"f")]
    assert read_all(log, 6) == []
    assert (log.start, log.end) == (0, 6)


def test_the_last_bytes_are_kept_and_no_more_than_twice_as_many(tmp_path: Path) -> None:
    log = open_output_log(tmp_path, "s")
    rng = random.Random(5)
    whole = b""
    for _ in range(300):
        data = rng.randbytes(rng.randrange(1, 65536))
        log.append([(1, data)])
        whole += data
        assert min(len(whole), KEPT) <= log.end - log.start <= 2 * KEPT + 65536
    assert log.start > 0
    assert b"".join(data for _, _, data in read_all(log)) == whole[log.start :]
    at = log.end - 100_000
    assert b"".join(data for _, _, data in read_all(log, at)) == whole[at:]
    again = open_output_log(tmp_path, "s")
    assert (again.start, again.end) == (log.start, log.end)
    assert read_all(again) == read_all(log)


def test_a_record_that_was_cut_short_is_written_anew(tmp_path: Path) -> None:
    log = open_output_log(tmp_path, "s")
    log.append([(1, b"first"), (2, b"second")])
    [path] = tmp_path.iterdir()
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        again = open_output_log(tmp_path, "s")
        missing = b"firstsecond"[again.end :]
        again.append([(1, missing[:1])])
        again = open_output_log(tmp_path, "s")
        again.append([(1, missing[1:])])
        assert b"".join(data for _, _, data in read_all(open_output_log(tmp_path, "s"))) == b"firstsecond"


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_output_log(tmp_path, "s")
    log.append([(1, b"kept")])
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(InsufficientResources):
            log.append([(1, b"lost")])
    log.append([(1, b"more")])
    assert b"".join(data for _, _, data in read_all(open_output_log(tmp_path, "s"))) == b"keptmore"


def full(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_nothing_is_left_of_a_log_that_is_removed(tmp_path: Path) -> None:
    log = open_output_log(tmp_path, "s")
    log.append([(1, bytes(KEPT))])
    log.append([(1, b"x")])
    log.remove()
    assert not list(tmp_path.iterdir())
