"""The SSH key of a data directory: made once, whoever comes first, and in the seeds of new VMs unless switched off."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pycdlib
import pytest
import trio

from tests.agent.nodes import config, spec, vms_of
from twinshare.agent.config import GuestsConfig
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.open_node import open_node
from twinshare.agent.ssh_key import ensure_ssh_key, private_key_file
from twinshare.protocols.access import LOCAL_ADMIN


def test_a_key_is_made_once_and_is_one_that_ssh_reads(tmp_path: Path) -> None:
    line = ensure_ssh_key(tmp_path, "twinshare node a\n'b")
    assert line.startswith("ssh-ed25519 AAAA")
    assert line.endswith(" twinshare node a--b")
    assert ensure_ssh_key(tmp_path, "another") == line
    private = private_key_file(tmp_path)
    assert private.stat().st_mode & 0o777 == 0o600
    assert private.parent.stat().st_mode & 0o777 == 0o700
    private.with_suffix(".pub").unlink()
    assert ensure_ssh_key(tmp_path, "again") == line.replace(" twinshare node a--b", " again")
    assert [file.name for file in private.parent.iterdir() if file.name.startswith(".")] == []


def test_those_who_come_at_once_get_the_same_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from twinshare.agent.ssh_key import ensure_ssh_key;"
        "print(ensure_ssh_key(Path(sys.argv[1]), 'x'))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1
    assert {process.returncode for process in started} == {0}


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_seed_has_the_key_of_the_node(tmp_path: Path, wanted: bool) -> None:
    settings = msgspec.structs.replace(config(tmp_path), guests=GuestsConfig(ssh_key=wanted))
    async with open_node(settings) as node:
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        made = await vms_of(node).create_vm(spec())
        seed = node.vms.files.directory(made.id) / "seed.iso"
        public = private_key_file(node.home.path).with_suffix(".pub")
        assert await trio.Path(public).exists() is wanted
        key = (await trio.Path(public).read_text()).strip() if wanted else ""
        assert key.endswith(f" twinshare node {node.name}") is wanted
    assert f"KEY='{key}'\n" in vendor_data_of(seed)


def vendor_data_of(seed: Path) -> str:
    image, out = pycdlib.PyCdlib(), io.BytesIO()
    image.open(str(seed))
    image.get_file_from_iso_fp(out, joliet_path="/vendor-data")
    image.close()
    return out.getvalue().decode()


def test_any_number_of_threads_make_one_pair(tmp_path: Path) -> None:
    """The first VMs of a node may be created at once."""
    for number in range(20):
        folder = tmp_path / str(number)
        with ThreadPoolExecutor(8) as pool:
            made = set(pool.map(lambda _, folder=folder: ensure_ssh_key(folder, "x"), range(8)))
        assert len(made) == 1
        assert sorted(file.name for file in (folder / "ssh").iterdir()) == ["id_ed25519", "id_ed25519.pub"]
