"""The qcow2 header as QEMU reads it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.agent.images.qcow2 import BadQcow2Error, empty_disk, empty_length, parse_header


@pytest.mark.parametrize("size", [512, 1 << 20, 5 << 30, (4 << 40) + 512])
def test_overlay_is_what_qemu_expects(tmp_path: Path, size: int) -> None:
    base, overlay = tmp_path / "base.raw", tmp_path / "overlay.qcow2"
    base.write_bytes(b"base" * 128)
    with overlay.open("wb") as file:
        for offset, data in empty_disk(size, str(base)):
            os.pwrite(file.fileno(), data, offset)
        os.truncate(file.fileno(), empty_length(size))
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", overlay], check=True)
    header = parse_header(overlay.read_bytes()[:512])
    assert (header.version, header.size, header.has_backing_file, header.has_data_file) == (3, size, True, False)
    output = subprocess.run(["qemu-img", "info", "-f", "qcow2", overlay], check=True, capture_output=True, text=True)
    assert f"backing file: {base}" in output.stdout
    assert "backing file format: raw" in output.stdout


@given(st.binary(max_size=200) | st.binary(max_size=150).map(lambda tail: b"QFI\xfb\0\0\0\3" + tail))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        parse_header(data)
    except BadQcow2Error:
        return
    assert data[:4] == b"QFI\xfb"
