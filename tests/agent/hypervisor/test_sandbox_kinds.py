"""The same promises for an agent that is not root, and what is left of them where namespaces are refused."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.agent.hypervisor.sandboxes import (
    OUTSIDE,
    OWN,
    QEMU,
    QMP_PORT,
    agent,
    greeting,
    in_namespace,
    lively_world,
    long_folder,
    open_to_nobody,
    reach,
    root,
    without,
)
from twinshare.agent.hypervisor.probe import probe_sandbox
from twinshare.agent.hypervisor.sandbox.sandbox import open_sandbox
from twinshare.protocols.errors import HypervisorDown

pytestmark = [pytest.mark.system, root]
NOBODY = "65534"


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A directory that belongs to another user, with a secret of that user beside it."""
    folder = Path(tempfile.mkdtemp(prefix="twinshare-", dir="/var/tmp"))
    (folder / "data").mkdir()
    (folder / "secret").write_text("secret")
    for path in (folder, folder / "data", folder / "secret"):
        shutil.chown(path, int(NOBODY), int(NOBODY))
    yield folder / "data"
    shutil.rmtree(folder)


async def test_an_ordinary_user_is_walled_off_by_a_user_namespace(nobodys: Path) -> None:
    async with agent(nobodys, prefix=open_to_nobody(), uid=NOBODY) as caller:
        state = await caller.tell("state")
        assert (state["kind"], state["user"]) == ("namespaces", None)
        status = dict(line.split(":\t", 1) for line in (await caller.run("cat", "/proc/self/status")).splitlines())
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
        code, out, _ = await caller.tell("run", argv=["cat", str(nobodys.parent / "secret")])
        assert (code, out) == (1, "")  # the very user's own file
        assert (await caller.run("ls", state["path"])).split() == ["hypervisor", "images", "vms"]


async def test_an_ordinary_users_guests_are_dialled_and_go_out_but_not_home(nobodys: Path) -> None:
    with lively_world() as host:
        async with agent(nobodys, prefix=(*in_namespace(host), *open_to_nobody()), uid=NOBODY) as caller:
            assert await caller.tell("connected", within=60)
            for address in OWN:
                assert (await caller.tell("run", argv=reach(address, 8080)))[1] == ""
            assert await caller.run(*reach(OUTSIDE, 80)) == "internet"
            guest = await caller.tell("spawn", argv=QEMU)
            assert "QMP" in await greeting(partial(caller.tell, "dial", port=QMP_PORT))
            await caller.run("kill", str(guest))


async def test_where_namespaces_are_refused_another_user_is_the_wall(nobodys: Path) -> None:
    shutil.chown(nobodys, 0, 0)
    nobodys.parent.chmod(0o755)
    secret = nobodys / "identity.key"
    secret.write_text("secret")
    secret.chmod(0o600)
    async with agent(nobodys, prefix=without("sys_admin")) as caller:
        state = await caller.tell("state")
        assert (state["kind"], state["user"]) == ("plain", "twinshare")
        assert "refuses private namespaces (making a mount namespace: Operation not permitted)" in state["problems"][0]
        status = dict(line.split(":\t", 1) for line in (await caller.run("cat", "/proc/self/status")).splitlines())
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
        assert (await caller.tell("run", argv=["cat", str(secret)]))[:2] == [1, ""]
        await caller.run("touch", f"{state['path']}/vms/made")
        assert await caller.run("stat", "-c", "%U", f"{state['path']}/vms/made") == "twinshare\n"


async def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    with pytest.raises(HypervisorDown, match=r"may not pass .*--data-dir /var/lib/twinshare"):
        async with open_sandbox(long_folder(tmp_path), kind="plain"):
            pass


async def test_refused_namespaces_are_an_error_for_who_insists(nobodys: Path) -> None:
    command = (*without("sys_admin"),)
    with pytest.raises(AssertionError, match="The configuration insists on them"):
        async with agent(nobodys, kind="namespaces", prefix=command):
            pass


async def test_a_container_with_root_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="root cannot become twinshare"):
        async with agent(tmp_path, prefix=("unshare", "--user", "--map-root-user")):
            pass


def test_a_probe_tells_what_there_is(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in probe_sandbox(tmp_path)}
    assert findings["sandbox"].ok
    assert findings["user"].ok
    assert all(finding.ok or finding.remedy for finding in findings.values())


def test_a_probe_tells_what_a_plain_sandbox_lacks(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in probe_sandbox(long_folder(tmp_path), kind="plain")}
    assert not findings["sandbox"].ok
    assert not findings["sandbox"].fatal
    assert findings["access to the data directory"].fatal
    assert "--data-dir" in findings["access to the data directory"].remedy
