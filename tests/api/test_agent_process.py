"""`twinshare agent` as a process: ready, alive, stopped, refused; the command line and the client against it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.testing import AgentProcess, open_agent
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.errors import VmExists, WrongState
from twinshare.protocols.vm import VmStatus

FAKE = ("--hypervisor", "fake://", "--name", "node-1")
pytestmark = pytest.mark.system


async def run(agent: AgentProcess, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, which finds the agent by its data directory."""
    environment = {**os.environ, "TWINSHARE_DATA_DIR": str(agent.data_dir)}
    command = [sys.executable, "-m", "twinshare", *arguments]
    with trio.fail_after(60):
        return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, env=environment)


async def start(*options: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """An agent that ought to end by itself."""
    command = [sys.executable, "-m", "twinshare", "agent", *options]
    with trio.fail_after(60):
        return await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env={**os.environ, **environment}
        )


async def test_the_card_tells_where_it_is_and_goes_when_it_stops(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "a", *FAKE) as agent:
        assert set(agent.agent_file) == {
            "pid", "version", "name", "peer_id", "api_url", "addresses", "data_dir", "hypervisor",
        }  # fmt: skip
        assert (agent.agent_file["name"], agent.agent_file["data_dir"]) == ("node-1", str(tmp_path / "a"))
        assert (tmp_path / "a" / "admin.token").stat().st_mode & 0o777 == 0o600
        assert await agent.stop() == 0
    assert not (tmp_path / "a" / "agent.json").exists()


async def test_a_second_agent_on_the_directory_is_refused(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "a", *FAKE) as agent:
        second = await start("--data-dir", str(tmp_path / "a"), "--api", agent.url.removeprefix("http://"))
        assert (second.returncode, second.stdout) == (1, b"")
        assert f"pid {agent.pid}".encode() in second.stderr
        assert (await run(agent, "status")).returncode == 0


async def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "a", *FAKE) as agent:
        taken = agent.url.removeprefix("http://")
        second = await start("--data-dir", str(tmp_path / "b"), "--hypervisor", "fake://", "--api", taken)
    assert second.returncode == 1
    assert b"Traceback" not in second.stderr
    assert second.stderr.splitlines()[-1].startswith(b"Error: cannot listen on " + taken.encode())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[api]\nlisten = 'x'\nlisetn = 'y'\n", "line 3: unknown key 'api.lisetn'; did you mean 'api.listen'?"),
        ("[api]\nburst = 'many'\n", "line 2"),
        ("[api]\nlisten = '0.0.0.0:0'\n[hypervisor]\nuri = 'fake://'\n", "api.insecure"),
    ],
)
async def test_a_wrong_configuration_is_wrong_usage(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "twinshare.toml"
    file.write_text(text)
    result = await start("--config", str(file), "--data-dir", str(tmp_path / "a"))
    assert result.returncode == 2
    assert said in result.stderr.decode()
    assert not (tmp_path / "a" / "agent.json").exists()


async def test_serve_is_agent_with_host_and_port(tmp_path: Path) -> None:
    result = await start("--host", "127.0.0.1", "--api", "127.0.0.1:0")
    assert (result.returncode, b"--api says it all" in result.stderr) == (2, True)
    agent = AgentProcess(tmp_path / "a", ["--host", "::1", "--port", "0", *FAKE], {})
    try:
        await agent.start()
        assert agent.url.startswith("http://[::1]:")
        assert (await run(agent, "status")).returncode == 0
    finally:
        await agent.stop()


@contextmanager
def notify_socket(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(20)
        yield listening


async def test_systemd_is_notified(tmp_path: Path) -> None:
    with notify_socket(tmp_path / "notify") as heard:
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        async with open_agent(tmp_path / "a", *FAKE, environment=environment) as agent:
            first = await trio.to_thread.run_sync(heard.recv, 1024)
            alive = [await trio.to_thread.run_sync(heard.recv, 1024) for _ in range(3)]
            await agent.stop()
        last = [heard.recv(1024) for _ in iter(partial(select_readable, heard), False)]
    assert first.startswith(b"READY=1\nSTATUS=node-1 at http")
    assert alive == [b"WATCHDOG=1"] * 3
    assert last[-1] == b"STOPPING=1"


def select_readable(listening: socket.socket) -> bool:
    import select

    return bool(select.select([listening], [], [], 0)[0])


async def test_logs_are_lines_of_json_without_secrets(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "a", *FAKE, "--log-format", "json", "--log-level", "debug") as agent:
        token = (tmp_path / "a" / "admin.token").read_text().strip()
        await run(agent, "token", "create", "x")
    lines = [json.loads(line) for line in agent.said.splitlines()]
    assert {"ready", "stopped"} <= {line["event"] for line in lines}
    assert token not in agent.said


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_tells_no_local_variables(form: str) -> None:
    code = (
        "import structlog, logging\n"
        "from twinshare.agent.config import LogConfig\n"
        "from twinshare.api.cli.logs import configure_logs\n"
        f"configure_logs(LogConfig(format='{form}'))\n"
        "def fail():\n    canary = ''.join(['sec', 'ret'])\n    raise ValueError('a bug')\n"
        "for log in (structlog.get_logger(), logging.getLogger('theirs')):\n"
        "    try:\n        fail()\n    except ValueError:\n        log.exception('it broke')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    assert (done.stderr.count("it broke"), done.stderr.count("ValueError: a bug")) == (2, 2)
    assert "secret" not in done.stderr


async def test_a_restart_under_load_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Four clients create VMs while the agent is stopped and comes back: each create is one VM."""
    options = ("--hypervisor", f"fake://{tmp_path}/fake.json", "--name", "node-1")
    wanted = [f"vm-{worker}-{number}" for worker in range(4) for number in range(6)]
    async with open_agent(tmp_path / "a", *options) as agent:
        await with_image(agent, tmp_path)
        port = agent.url.rpartition(":")[2]

        async def create(client: RESTClient, names: list[str]) -> None:
            for name in names:
                await client.create_vm(name, "disk", cpu_cores=1, memory=64, disk_size=1)

        async with RESTClient(agent.url) as client:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for worker in range(4):
                        nursery.start_soon(create, client, wanted[worker * 6 : worker * 6 + 6])
                    while len(await client.list_vms()) < 4:
                        await trio.sleep(0.01)
                    assert await agent.stop() == 0
                    await agent.start("--api", f"127.0.0.1:{port}")
            assert sorted(vm.name for vm in await client.list_vms()) == sorted(wanted)


def thread_heaps(pid: int) -> list[int]:
    """glibc takes 64 MiB of addresses, aligned, for each heap beside the first, and opens them bit by bit."""
    spans = [line.split()[:2] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    found = [(int(span.partition("-")[0], 16), int(span.partition("-")[2], 16), mode) for span, mode in spans]
    return [
        start
        for (start, _, mode), (_, end, closed) in pairwise(found)
        if start % (64 << 20) == 0 and end - start == 64 << 20 and (mode, closed) == ("rw-p", "---p")
    ]


async def test_its_threads_share_one_heap(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "a", *FAKE) as agent, RESTClient(agent.url) as client:
        await client.import_image("disk", pieces(raw_disk(1)))
        await client.create_vm("web", "disk", memory=64, disk_size=1, cpu_cores=1)
        assert thread_heaps(agent.pid) == []


async def test_its_loop_gets_the_interpreter_soon(tmp_path: Path) -> None:
    """A thread that decodes what a peer sent keeps the event loop from running for an interval at each wake."""
    shown = "import sys, trio; trio.run = lambda *_: print(sys.getswitchinterval()); from twinshare.api.cli import main"
    command = [sys.executable, "-c", f"{shown}; main()", "agent", "--data-dir", str(tmp_path)]
    with trio.fail_after(60):
        ended = await trio.run_process(command, capture_stdout=True, check=False)
    assert float(ended.stdout) == 0.001


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "a", *FAKE) as agent:
        for _ in range(2):
            os.kill(agent.pid, signal.SIGINT)
        assert await agent.stop() == 0


async def with_image(agent: AgentProcess, directory: Path) -> None:
    (directory / "disk").write_bytes(raw_disk(1))
    made = await run(agent, "image", "import", str(directory / "disk"), "disk")
    assert (made.returncode, made.stderr) == (0, b"")


async def test_the_life_of_a_vm_by_commands(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "a", *FAKE) as agent:
        await with_image(agent, tmp_path)
        made = await run(
            agent, *["vm", "create", "web", "--image", "disk", "--cpu", "1", "--memory", "64", "--disk", "1", "--start"]
        )
        assert (made.returncode, made.stdout) == (0, b"web running\n")
        (listed,) = json.loads((await run(agent, "vm", "ls", "--json")).stdout)
        assert (listed["name"], listed["status"], listed["memory"]) == ("web", "running", 64)
        refused = await run(agent, "vm", "rm", "web")
        assert (refused.returncode, refused.stdout) == (1, b"")
        assert b"stop it first" in refused.stderr
        assert b"did you mean 'web'" in (await run(agent, "vm", "show", "wed")).stderr
        assert (await run(agent, "vm", "stop", "web")).stdout == b"web stopped\n"
        assert (await run(agent, "vm", "rm", "web")).stdout == b"web deleted\n"
        kinds = [operation["kind"] for operation in json.loads((await run(agent, "op", "ls", "--json")).stdout)]
        assert kinds == ["delete_vm", "stop_vm", "create_vm"]
        away = await run(agent, "vm", "ls", "--on", "alice")
        assert (away.returncode, away.stdout) == (4, b"")


async def client_tour(url: str) -> None:
    """The guide's Python example and what goes beyond it."""
    async with RESTClient(url) as client:
        made = await client.create_vm(name="web", image="disk", cpu_cores=1, memory=64, disk_size=1)
        assert (made.status, made.vnc_port) == (VmStatus.STOPPED, None)
        with pytest.raises(VmExists):
            await client.create_vm(name="web", image="disk", memory=64, disk_size=1)
        async with client.events() as events:
            operation = await client.begin("start_vm", {"vm": "web"})
            assert (await client.wait(operation)).status is VmStatus.RUNNING
            async for event in events:
                if event.type == "op.done":
                    assert event.data["id"] == operation.id
                    break
        with pytest.raises(WrongState):
            await client.delete_vm("web")
        stopped = await client.stop_vm("web", force=True)
        assert (stopped.success, stopped.name, stopped.status) == (True, "web", "stopped")
        assert (await client.delete_vm("web")).success
        assert await client.list_vms() == []
        assert (await client.node().health()).vms == 0


async def test_the_client_under_both_loops(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "a", *FAKE) as agent:
        await with_image(agent, tmp_path)
        with trio.fail_after(30):
            await client_tour(agent.url)
        await trio.to_thread.run_sync(asyncio.run, client_tour(agent.url))


async def test_a_client_outlives_kill_nine_of_the_agent(tmp_path: Path) -> None:
    """A create that is cut off is one VM; a listener gets what it missed."""
    options = ("--hypervisor", f"fake://{tmp_path}/fake.json", "--name", "node-1")
    async with open_agent(tmp_path / "a", *options) as agent:
        await with_image(agent, tmp_path)
        port = agent.url.rpartition(":")[2]
        async with RESTClient(agent.url) as client, client.events() as events, trio.open_nursery() as nursery:
            assert len(await client.list_vms()) == 0
            await agent.kill()
            nursery.start_soon(agent.start, "--api", f"127.0.0.1:{port}")
            with trio.fail_after(30):
                # Its connection is dead and it does not know it yet.
                vm = await client.create_vm("web", "disk", cpu_cores=1, memory=64, disk_size=1)
                assert [found.id for found in await client.list_vms()] == [vm.id]
                seen = [event.type async for event in take(events, 2)]
        assert seen
    assert agent.said.count("[info     ] ready") == 2


async def take(events, count: int):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    async for event in events:
        yield event
        count -= 1
        if not count:
            return


async def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "a", ["--api", f"unix:{tmp_path}/api", *FAKE], {})
    try:
        await agent.start()
        assert agent.url == f"unix:{tmp_path}/api"
        assert (await run(agent, "vm", "ls", "--json")).stdout == b"[]\n"
        async with RESTClient(agent.url) as client:
            assert await client.list_vms() == []
    finally:
        await agent.stop()
