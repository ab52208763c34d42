"""The cloud-init seed: read back with the library that wrote it, and with the system's own eyes where it has them."""

import email
import email.mime.multipart
import email.mime.text
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
    assert set(files) == {"meta-data", "user-data", "network-config", "vendor-data"}
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": "an-id", "local-hostname": "web"}
    assert files["user-data"].startswith("#cloud-config\n")
    assert yaml.safe_load(files["user-data"]) == {"hostname": "web"}


def test_the_key_of_the_node_leaves_user_data_as_they_are() -> None:
    files = read(build_seed("an-id", "web", CloudInit(user_data="#!/bin/sh\n"), "ssh-ed25519 AAAA twinshare node a"))
    assert files["user-data"] == "#!/bin/sh\n"
    assert "KEY='ssh-ed25519 AAAA twinshare node a'\n" in files["vendor-data"]


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
    parts = list(email.message_from_string(archive).walk())[1:]
    assert [part.get_content_type() for part in parts] == ["text/cloud-config", "text/x-shellscript"]
    assert parts[1].get_payload(decode=True) == b"#!/bin/sh\n"


FORMS = {
    "## template: jinja\n#cloud-config\na: {{ v1.region }}\n": "text/jinja2",
    "#include\nhttps://example.org/x\n": "text/x-include-url",
    "#include-once\nhttps://example.org/x\n": "text/x-include-once-url",
    "#cloud-boothook\n#!/bin/sh\n": "text/cloud-boothook",
    "#part-handler\n": "text/part-handler",
    "#cloud-config-archive\n- a\n": "text/cloud-config-archive",
    "\n#!/bin/sh\n": "text/x-shellscript",
}


@pytest.mark.parametrize(("text", "kind"), FORMS.items())
def test_every_form_of_cloud_init_is_taken(text: str, kind: str) -> None:
    assert user_data("web", CloudInit(user_data=text)) == text
    check_cloud_init(CloudInit(user_data=text))
    archive = user_data("web", CloudInit(user_data=text, ssh_authorized_keys=["k"]))
    parts = list(email.message_from_string(archive).walk())[1:]
    assert [part.get_content_type() for part in parts] == ["text/cloud-config", kind]
    assert parts[1].get_payload(decode=True) == text.encode()


def test_a_mime_archive_becomes_a_part_of_ours() -> None:
    theirs = email.mime.multipart.MIMEMultipart()
    theirs.attach(email.mime.text.MIMEText("#!/bin/sh\n", "x-shellscript"))
    archive = user_data("web", CloudInit(user_data=theirs.as_string(), ssh_authorized_keys=["k"]))
    kinds = [part.get_content_type() for part in email.message_from_string(archive).walk()]
    assert kinds == ["multipart/mixed", "text/cloud-config", "multipart/mixed", "text/x-shellscript"]


def test_a_byte_order_mark_is_left_out() -> None:
    """cloud-init would not recognise what follows it."""
    assert user_data("web", CloudInit(user_data="\ufeff#!/bin/sh\n")) == "#!/bin/sh\n"
    with pytest.raises(InvalidRequest):
        check_cloud_init(CloudInit(user_data="\ufeff#cloud-config\na: [\n"))


@pytest.mark.parametrize("text", ["/etc/passwd", "echo", "cloud-config", "[", "\ufeff"])
def test_what_cloud_init_would_ignore_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="in a form that cloud-init knows"):
        CloudInit(user_data=text)


@pytest.mark.parametrize(
    "bad",
    [
        CloudInit(user_data="#cloud-config\na: [\n"),
        CloudInit(user_data="#cloud-config\n- a\n"),
        CloudInit(user_data="#cloud-config\na: " + "[" * 60_000),
        CloudInit(user_data="#cloud-config\nssh_authorized_keys: x\n"),
        CloudInit(user_data="#cloud-config\na: !!python/object/apply:os.system [id]\n"),
        CloudInit(network_config="]"),
    ],
)
def test_what_cloud_init_would_stumble_over_is_refused(bad: CloudInit) -> None:
    with pytest.raises(InvalidRequest):
        check_cloud_init(bad)
