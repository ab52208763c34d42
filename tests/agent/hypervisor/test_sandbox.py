"""The sandbox's promises, each shown by a process that tries to break them from inside."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.agent.hypervisor.sandboxes import (
    QEMU,
    QMP_PORT,
    agent,
    exists,
    greeting,
    long_folder,
    mounts,
    reach,
    root,
    running,
    serving,
)
from tests.leaks import nothing_leaks
from tests.stopwatch import Stopwatch
from twinshare.agent.hypervisor.sandbox.sandbox import Sandbox, ToolLimits, open_sandbox
from twinshare.protocols.errors import DeadlineExceeded, HypervisorDown, TooLarge

pytestmark = [pytest.mark.system, root]


async def output(sandbox: Sandbox, *argv: str) -> str:
    done = await sandbox.run(argv)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


async def heard(sandbox: Sandbox, port: int) -> str:
    async with await sandbox.dial(port) as stream:
        return (await stream.receive_some(1000)).decode()


@asynccontextmanager
async def spawned(sandbox: Sandbox, argv: list[str]) -> AsyncIterator[None]:
    process = await sandbox.spawn(argv, env={}, stderr=sandbox.path / "hypervisor/test.log")
    try:
        yield
    finally:
        process.terminate()
        with trio.fail_after(60):
            # QEMU answers on its control port a moment before it takes signals: the signal itself may end it.
            assert await process.wait() in {0, -signal.SIGTERM}


async def test_processes_inside_are_an_unprivileged_user_without_capabilities(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        status = await output(sandbox, "cat", "/proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
    assert "0" not in fields["Uid"].split()
    assert fields["Umask"] == "0077"


async def test_only_standard_streams_are_handed_in(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        files = await output(sandbox, "ls", "/proc/self/fd")
    assert files.split() == ["0", "1", "2", "3"]  # the last is that of ls


async def test_the_environment_of_the_agent_does_not_reach_inside(tmp_path: Path) -> None:
    starter = 'umask 077; ulimit -S -n 64; ulimit -S -f 2000; exec 17</dev/null; exec env LANG=C HOME=/nowhere "$@"'
    async with agent(tmp_path / "node", prefix=("bash", "-c", starter, "bash")) as started:
        path = (await started.tell("state"))["path"]
        assert (await started.run("ls", path)).split() == ["hypervisor", "images", "vms"]
        assert (await started.run("ls", "/proc/self/fd")).split() == ["0", "1", "2", "3"]
        spawned = await started.tell("spawn", argv=["sleep", "604"])
        limits = await trio.Path(f"/proc/{spawned}/limits").read_text()
        os.kill(spawned, signal.SIGTERM)
    soft = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()}
    assert soft["Max file size"] == "unlimited"
    assert int(soft["Max open files"]) >= 1024


async def test_one_path_names_the_same_file_inside_and_outside_however_long_and_locked_the_way(tmp_path: Path) -> None:
    folder = long_folder(tmp_path)
    async with open_sandbox(folder) as sandbox:
        (folder / "vms/note").write_text("hello")
        sandbox.chown(folder / "vms")
        assert await output(sandbox, "cat", str(sandbox.path / "vms/note")) == "hello"
        await output(sandbox, "touch", str(sandbox.path / "images/made"))
        assert (sandbox.path / "images/made").stat().st_uid == (folder / "images").stat().st_uid != 0
        assert len(str(sandbox.path)) < 40


async def test_the_path_survives_a_move_of_the_data_directory(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path / "one") as sandbox:
        before = sandbox.path
        (tmp_path / "one/images/base").write_text("base")
        sandbox.chown(tmp_path / "one/images")
    (tmp_path / "one").rename(tmp_path / "two")
    async with open_sandbox(tmp_path / "two") as sandbox:
        assert sandbox.path == before
        assert await output(sandbox, "cat", str(before / "images/base")) == "base"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """The node's key, as carelessly kept as can be."""
    file = tmp_path / "identity.key"
    file.write_text("secret")
    file.chmod(0o644)
    tmp_path.chmod(0o755)
    return file


async def test_secrets_of_the_node_are_out_of_reach(tmp_path: Path, secret: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        for path in (secret, sandbox.path / "identity.key"):
            done = await sandbox.run(["cat", str(path)])
            assert (done.returncode, done.stdout) == (1, b"")
        assert (await output(sandbox, "ls", str(sandbox.path))).split() == ["hypervisor", "images", "vms"]
        hidden = ["/boot", "/home", "/root", "/tmp", "/var/lib", "/var/log"]
        assert (await sandbox.run(["find", *hidden, "-mindepth", "1"])).stdout == b""
        assert await output(sandbox, "ls", "/run") == "twinshare\n"


async def test_nodes_do_not_see_each_other(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path / "one") as one, open_sandbox(tmp_path / "two") as two:
        assert one.path != two.path
        assert (await one.run(["ls", str(two.path)])).returncode != 0
        async with spawned(two, QEMU):
            async with spawned(one, QEMU):  # on the same port
                for sandbox in (one, two):
                    assert "QMP" in await greeting(partial(heard, sandbox, QMP_PORT))
                assert not one.pids() & two.pids()
            assert "QMP" in await greeting(partial(heard, two, QMP_PORT))


async def test_the_machines_loopback_is_out_of_reach_and_the_inner_one_is_dialled(tmp_path: Path) -> None:
    with serving(b"SECRET") as port:
        async with open_sandbox(tmp_path) as sandbox:
            assert (await sandbox.run(reach("127.0.0.1", port))).stdout == b""
            inner = [word.replace(str(QMP_PORT), str(port)) for word in QEMU]  # one port in two worlds
            async with spawned(sandbox, inner):
                assert "QMP" in await greeting(partial(heard, sandbox, port))
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    assert await stream.receive_some(100) == b"SECRET"


async def test_dialling_a_full_listener_is_retried_soon(tmp_path: Path) -> None:
    """QEMU serves one connection and queues one or two; the kernel would have the next wait for a second."""
    async with open_sandbox(tmp_path) as sandbox, spawned(sandbox, QEMU):
        assert "QMP" in await greeting(partial(heard, sandbox, QMP_PORT))
        crowd = [await sandbox.dial(QMP_PORT) for _ in range(3)]
        waits: list[float] = []

        async def one_more() -> None:
            stopwatch = Stopwatch(*sandbox.pids())
            async with await sandbox.dial(QMP_PORT):
                waits.append(stopwatch.seconds)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_more)
            await trio.sleep(0.1)
            for stream in crowd:
                await stream.aclose()
        assert waits[0] < 0.9


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = mounts()
    with nothing_leaks():
        async with open_sandbox(tmp_path) as sandbox:
            await output(sandbox, "true")
            process = await sandbox.spawn(["sleep", "600"], env={}, stderr=tmp_path / "log")
            pids = sandbox.pids() | {process.pid}
            assert not await sandbox.release()
            process.kill()
            await process.wait()
            process.close()
    assert not exists(sandbox.path, f"{sandbox.path}.sock", *(f"/proc/{pid}" for pid in pids))
    assert mounts() == before


async def test_release_and_then_nothing_may_run(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        assert await sandbox.release()
        with pytest.raises(HypervisorDown):
            await sandbox.run(["true"])


async def test_a_tool_is_fed_heard_and_judged(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        done = await sandbox.run(["sh", "-c", "cat; echo bad >&2; exit 7"], input=b"x" * 300_000)
        assert (done.returncode, len(done.stdout), done.stderr) == (7, 300_000, b"bad\n")
        assert (await sandbox.run(["sh", "-c", "kill -9 $$"])).returncode == -9
        with pytest.raises(FileNotFoundError):
            await sandbox.run(["no-such-tool"])


async def test_a_tool_is_bounded_in_time_memory_and_words(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        with pytest.raises(DeadlineExceeded, match="sleep did not finish"):
            await sandbox.run(["sleep", "600"], timeout=0.1)
        with pytest.raises(TooLarge, match="yes wrote more"):
            await sandbox.run(["yes"], limits=ToolLimits(output=100_000))
        hungry = await sandbox.run(
            ["bash", "-c", "x=$(head -c 300M /dev/zero | tr '\\0' x)"], limits=ToolLimits(memory=100)
        )
        assert hungry.returncode != 0
        await sandbox.run(
            ["dd", "if=/dev/zero", f"of={sandbox.path}/vms/big", "bs=1M", "count=9"],
            limits=ToolLimits(file_size=1 << 20),
        )
        assert (tmp_path / "vms/big").stat().st_size <= 1 << 20
        assert not running("sleep 600")


async def test_a_cancelled_call_leaves_no_process(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        with trio.move_on_after(0.2) as scope:
            await sandbox.run(["sleep", "601"])
        assert scope.cancelled_caught
        assert not running("sleep 601")
        assert await output(sandbox, "echo", "well") == "well\n"


async def test_many_calls_at_once(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        words: list[str] = []

        async def one(number: int) -> None:
            words.append(await output(sandbox, "echo", str(number)))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
    assert sorted(map(int, words)) == list(range(50))


async def test_a_gift_does_not_follow_links(tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_text("mine")
    async with open_sandbox(tmp_path / "node") as sandbox:
        (tmp_path / "node/vms/link").symlink_to(treasure)
        sandbox.chown(tmp_path / "node/vms")
        sandbox.chown(tmp_path / "node/vms/link")
    assert treasure.stat().st_uid == os.geteuid()
