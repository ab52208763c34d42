"""Secrets in requests: which leave it, when, and which requests can have any."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from twinshare.protocols.guest import ExecRequest
from twinshare.protocols.image import PullRequest, RegistryCredentials
from twinshare.protocols.secrets import NEVER, UNTIL_END, has_secrets, secrets_until_end, without_secrets
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods
from twinshare.protocols.vm import CloudInit, VmSpec

TABLE = all_methods(SERVICES)
OWN = RegistryCredentials(registry="r.example", username="a", password="secret")


def test_what_may_be_written_down_while_an_operation_runs_and_after_it() -> None:
    spec = VmSpec(name="a", image="disk", cloud_init=CloudInit(user_data="#cloud-config\n", hostname="web"))
    asked = TABLE["create_vm"].args(spec=spec)
    assert without_secrets(asked, ended=False) is asked, "it goes on after a crash"
    kept = without_secrets(asked, ended=True)
    assert kept.spec.cloud_init == CloudInit(hostname="web")  # type: ignore[attr-defined]  # made from the table
    assert secrets_until_end(asked) == ["#cloud-config\n", ""]
    pull = TABLE["pull_image"].args(request=PullRequest(image="r.example/a", credentials=OWN))
    for ended in (False, True):
        assert b"secret" not in msgspec.msgpack.encode(without_secrets(pull, ended=ended))
    assert secrets_until_end(pull) == [], "a new password makes no other request"
    ran = ExecRequest(command=["env"], env={"KEY": "secret"}, stdin="secret")
    assert without_secrets(ran, ended=True) == ExecRequest(command=["env"])


def test_which_operations_can_have_secrets() -> None:
    found = {name for name, method in TABLE.items() if has_secrets(method.args)}
    assert {"create_vm", "pull_image", "push_image"} <= found <= {"create_vm", "pull_image", "push_image", "exec_vm"}


def test_a_secret_has_a_default_that_stands_for_it() -> None:
    wrong = msgspec.defstruct("Wrong", [("password", Annotated[str, NEVER])])
    with pytest.raises(TypeError, match="password needs a default"):
        has_secrets(wrong)
    assert has_secrets(msgspec.defstruct("Right", [("password", Annotated[str, UNTIL_END], "")]))
