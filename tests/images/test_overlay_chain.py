"""Which files an overlay stands on: overlays of one folder, down to the image's disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinshare.agent.images import qcow2
from twinshare.agent.images.overlay import MAX_OVERLAYS, overlay_chain

SIZE = 1 << 20
BASE = "/images/raw/base"


def overlay(folder: Path, name: str, backing: str, size: int = SIZE) -> Path:
    path = folder / name
    path.write_bytes(qcow2.empty_disk(size, backing)[0][1])
    return path


def test_each_overlay_names_the_next_by_itself_or_with_its_folder(tmp_path: Path) -> None:
    first = overlay(tmp_path, "disk.qcow2", BASE)
    second = overlay(tmp_path, "disk.first", str(first))
    third = overlay(tmp_path, "disk.second", "disk.first")
    assert overlay_chain(third, BASE, SIZE) == [third, second, first]


def test_a_chain_that_comes_back_to_itself_is_none(tmp_path: Path) -> None:
    overlay(tmp_path, "a", "b")
    assert overlay_chain(overlay(tmp_path, "b", "a"), BASE, SIZE) == []


@pytest.mark.parametrize(("count", "found"), [(MAX_OVERLAYS, MAX_OVERLAYS), (MAX_OVERLAYS + 2, 0)])
def test_a_chain_has_a_bounded_length(tmp_path: Path, count: int, found: int) -> None:
    last = overlay(tmp_path, "0", BASE)
    for number in range(1, count):
        last = overlay(tmp_path, str(number), str(number - 1))
    assert len(overlay_chain(last, BASE, SIZE)) == found


@pytest.mark.parametrize("backing", ["/etc/hostname", "../other", "folder/x", "folder/../../x", "", "absent"])
def test_nothing_outside_of_its_folder_is_followed(tmp_path: Path, backing: str) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path.parent):
        overlay(place, "x", BASE)
    overlay(tmp_path.parent, "other", BASE)
    assert overlay_chain(overlay(tmp_path, "disk", backing), BASE, SIZE) == []


def test_another_size_or_a_link_is_no_overlay_of_it(tmp_path: Path) -> None:
    overlay(tmp_path, "small", BASE, SIZE // 2)
    assert overlay_chain(overlay(tmp_path, "disk", "small"), BASE, SIZE) == []
    overlay(tmp_path, "plain", BASE)
    (tmp_path / "link").symlink_to("plain")
    assert overlay_chain(overlay(tmp_path, "other", "link"), BASE, SIZE) == []
