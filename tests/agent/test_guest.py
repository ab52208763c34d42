"""The cloud-init seed: read back with the library that wrote it, and with the system's own eyes where it has them."""

import io

import pycdlib
import pytest
import yaml

from twinshare.agent.vm.guest import build_seed, check_cloud_init, user_data
from twinshare.protocols.errors import InvalidRequest
from twinshare.protocols.vm import CloudInit


def read(iso: bytes) -> dict[str, str]:
    image = pycdlib.PyCdlib()
    image.open_fp(io.BytesIO(iso))
    assert image.pvd.volume_identifier.strip() == b"cidata"
    found = {}
    for child in image.list_children(joliet_path="/"):
        if child.is_file():
            name = child.file_identifier().decode("utf-16_be")
            out = io.BytesIO()
            image.get_file_from_iso_fp(out, joliet_path=f"/{name}")
            found[name] = out.getvalue().decode()
    image.close()
    return found


def test_a_seed_names_the_guest_and_carries_its_documents() -> None:
    files = read(build_seed("an-id", "web", CloudInit(network_config="version: 2\n")))
    assert set(files) == {"meta-data", "user-data", "network-config"}
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": "an-id", "local-hostname": "web"}
    assert files["user-data"].startswith("#cloud-config\n")
    assert yaml.safe_load(files["user-data"]) == {"hostname": "web"}


def test_keys_are_merged_and_the_callers_words_win() -> None:
    text = "#cloud-config\nhostname: mine\nssh_authorized_keys: [a]\npackages: ['x: y']\n"
    merged = yaml.safe_load(user_data("web", CloudInit(user_data=text, ssh_authorized_keys=["b"])))
    assert merged == {"hostname": "mine", "ssh_authorized_keys": ["a", "b"], "packages": ["x: y"]}


def test_what_needs_no_merging_is_passed_on_as_it_is() -> None:
    text = "#cloud-config\n# a comment\nhostname: mine\n"
    assert user_data("web", CloudInit(user_data=text)) == text
    assert user_data("web", CloudInit(user_data="#!/bin/sh\necho hi\n")) == "#!/bin/sh\necho hi\n"


def test_a_script_with_keys_becomes_an_archive() -> None:
    archive = user_data("web", CloudInit(user_data="#!/bin/sh\n", ssh_authorized_keys=["k"]))
    assert archive.startswith("Content-Type: multipart/mixed")
    assert "text/x-shellscript" in archive
    assert "text/cloud-config" in archive


@pytest.mark.parametrize(
    "bad",
    [
        CloudInit(user_data="#cloud-config\na: [\n"),
        CloudInit(user_data="#cloud-config\n- a\n"),
        CloudInit(user_data="#cloud-config\nssh_authorized_keys: x\n"),
        CloudInit(user_data="#cloud-config\na: !!python/object/apply:os.system [id]\n"),
        CloudInit(network_config="]"),
    ],
)
def test_what_cloud_init_would_stumble_over_is_refused(bad: CloudInit) -> None:
    with pytest.raises(InvalidRequest):
        check_cloud_init(bad)
