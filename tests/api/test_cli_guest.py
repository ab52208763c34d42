"""`twinshare vm exec`, `attach`, `sessions`, `cp`, `ssh`: as processes, against a node whose guest is this machine."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.nodes import spec
from tests.api.served import TABLE, Served, served
from tests.api.test_guest_api import running
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.hypervisor.memory.guest_process import GuestProcess
from twinshare.api.cli.copying import Copy
from twinshare.api.cli.ssh_files import HostKeys
from twinshare.api.cli.vm_copy import CopyEnd, read_end
from twinshare.api.cli.vm_ssh import read_host
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.errors import InvalidRequest

Done = subprocess.CompletedProcess[bytes]


async def twinshare(url: str, *arguments: str, stdin: bytes = b"", **environment: str) -> Done:
    with trio.fail_after(60):
        return await trio.run_process(
            [sys.executable, "-m", "twinshare", *arguments], check=False, capture_stdout=True, capture_stderr=True,
            stdin=stdin, env={**os.environ, "TWINSHARE_API": url, **environment},
        )  # fmt: skip


class Cutting:
    """A way to a node that is cut again and again, each time after some bytes of the node's answers."""

    def __init__(self, api: Served, cuts: list[int]) -> None:
        self._address, self._cuts = api.address, cuts
        self._open: set[trio.CancelScope] = set()
        self.connections = self.sent = 0

    def cut_all(self) -> None:
        for scope in self._open:
            scope.cancel()

    async def serve(self, near: trio.SocketStream) -> None:
        self.connections += 1
        limit = self._cuts.pop(0) if self._cuts else 1 << 62
        async with near, await trio.open_tcp_stream(*self._address) as far, trio.open_nursery() as nursery:
            self._open.add(nursery.cancel_scope)
            nursery.start_soon(self._carry, near, far, 1 << 62, nursery)
            nursery.start_soon(self._carry, far, near, limit, nursery)

    async def _carry(self, source: Any, sink: Any, limit: int, nursery: trio.Nursery) -> None:
        try:
            while limit > 0 and (data := await source.receive_some(4096)):
                await sink.send_all(data[:limit])
                limit -= len(data)
                self.sent += len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def cut(api: Served, *cuts: int) -> AsyncIterator[tuple[str, Cutting]]:
    way = Cutting(api, list(cuts))
    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(trio.serve_tcp, way.serve, 0)
        port = listeners[0].socket.getsockname()[1]
        yield f"http://127.0.0.1:{port}", way
        nursery.cancel_scope.cancel()


async def test_output_and_exit_code_are_the_commands_own(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        done = await twinshare(api.url, "vm", "exec", "one", "--", "sh", "-c", "echo x; echo y >&2; exit 3")
        assert (done.stdout, done.stderr, done.returncode) == (b"x\n", b"y\n", 3)
        fields = ("--env", "A=b c", "--workdir", "/usr", "--timeout", "20")
        done = await twinshare(api.url, "vm", "exec", "one", *fields, "--", "sh", "-c", 'echo "$A $PWD"')
        assert (done.stdout, done.returncode) == (b"b c /usr\n", 0), done.stderr
        content = random.Random(1).randbytes(3 << 20)
        done = await twinshare(api.url, "vm", "exec", "-i", "one", "--", "cat", stdin=content)
        assert (done.stdout == content, done.returncode) == (True, 0)
        late = await twinshare(api.url, "vm", "exec", "one", "--timeout", "1", "--", "sleep", "60")
        assert late.returncode == 124
        killed = await twinshare(api.url, "vm", "exec", "one", "--", "sh", "-c", "kill -9 $$")
        assert killed.returncode == 137
        listed = await twinshare(api.url, "vm", "sessions", "one", "--columns", "exit")
        assert listed.stdout.split() == [b"EXIT", b"3", b"0", b"0", b"124", b"-"]


async def test_words_after_the_dashes_are_the_commands_own(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        show = 'printf "<%s>" "$V" "$@"'
        done = await twinshare(
            api.url, "vm", "exec", "one", "--env", b"V=\xff=1".decode(errors="surrogateescape"), "--",
            "sh", "-c", show, "--", "-t", "--", "--help", "", "a b", b"\xfe".decode(errors="surrogateescape"), "*",
        )  # fmt: skip
        assert (done.stdout, done.returncode) == (b"<\xff=1><-t><--><--help><><a b><\xfe><*>", 0), done.stderr
        odd = await twinshare(api.url, "vm", "exec", "one", "--", "--help")
        assert (odd.returncode, odd.stderr) == (127, b"--help: No such file or directory\n")
        assert (await twinshare(api.url, "vm", "exec", "one", "--")).returncode == 2
        where = await twinshare(api.url, "vm", "exec", "one", "--workdir", "-dash", "--", "true")
        assert (where.returncode, b"-dash" in where.stderr) == (127, True)


async def test_a_guest_that_cannot_be_asked_is_125(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        await api.node.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": spec(start=True)})
        done = await twinshare(api.url, "vm", "exec", "one", "--", "true")
        assert done.returncode == 125
        assert b"channel" in done.stderr
        await api.node.call(LOCAL_ADMIN, TABLE["stop_vm"], {"vm": "one", "force": True})
        assert (await twinshare(api.url, "vm", "exec", "one", "--", "true")).returncode == 125
        assert (await twinshare(api.url, "vm", "exec", "none", "--", "true")).returncode == 1
        assert (await twinshare(api.url, "vm", "exec", "one")).returncode == 2


async def test_a_connection_that_is_cut_loses_and_doubles_nothing(tmp_path: Path) -> None:
    content = random.Random(2).randbytes(400_000)
    async with running(tmp_path) as api, cut(api, 1 << 40, 60_000, 5_000, 100_000, 30, 40_000) as (url, way):
        done = await twinshare(url, "vm", "exec", "one", "--", "cat", stdin=content)
        assert way.connections > 4
        assert (done.stdout == content, done.returncode) == (True, 0), done.stderr


async def test_input_that_waits_for_the_guest_is_sent_again_after_a_cut(tmp_path: Path) -> None:
    """Megabytes are in the sockets' buffers when the connection is cut: the node has them not."""
    content = random.Random(4).randbytes(16 << 20)
    async with running(tmp_path) as api, cut(api) as (url, way), trio.open_nursery() as nursery:
        go_on = tmp_path / "go-on"

        async def cut_when_it_waits() -> None:
            with trio.fail_after(30):
                while way.sent < 1 << 20:
                    await trio.sleep(0.05)
                await trio.sleep(1)
            way.cut_all()
            await trio.Path(go_on).touch()

        nursery.start_soon(cut_when_it_waits)
        wait = f"while [ ! -e {go_on} ]; do sleep 0.05; done; cat"
        done = await twinshare(url, "vm", "exec", "one", "--", "sh", "-c", wait, stdin=content)
        assert (done.stdout == content, done.returncode) == (True, 0), done.stderr
        assert way.connections >= 3


async def test_a_detached_command_is_joined_later(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        begun = await twinshare(api.url, "vm", "exec", "-d", "one", "--", "sh", "-c", "echo early; sleep 1; exit 5")
        session = begun.stdout.decode().strip()
        done = await twinshare(api.url, "vm", "attach", "one", session)
        assert (done.stdout, done.returncode) == (b"early\n", 5), done.stderr


async def test_files_are_copied_both_ways(tmp_path: Path) -> None:
    guest, here = tmp_path / "guest", tmp_path / "here"
    guest.mkdir()
    (here / "site" / "inner").mkdir(parents=True)
    (here / "site" / "page").write_bytes(os.urandom(50_000))
    (here / "site" / "inner" / "empty").write_bytes(b"")
    (here / "site" / "link").symlink_to("page")
    (here / "site" / "page").chmod(0o750)
    os.utime(here / "site" / "page", (1_000_000_000, 1_000_000_000))
    async with running(tmp_path / "node") as api:
        refused = await twinshare(api.url, "vm", "cp", str(here / "site"), f"one:{guest}")
        assert (refused.returncode, b"-r" in refused.stderr) == (1, True)
        done = await twinshare(api.url, "vm", "cp", "-r", str(here / "site"), f"one:{guest}")
        assert done.returncode == 1, "the link is left out, and a line says so"
        assert b"link" in done.stderr
        back = here / "back"
        done = await twinshare(api.url, "vm", "cp", "-r", f"one:{guest}/site", str(back))
        assert done.returncode == 0, done.stderr
        for place in (guest / "site", back):
            page = (place / "page").stat()
            assert (place / "page").read_bytes() == (here / "site" / "page").read_bytes()
            assert (page.st_mode & 0o777, page.st_mtime) == (0o750, 1_000_000_000)
            assert (place / "inner" / "empty").read_bytes() == b""
            assert not (place / "link").exists()
        done = await twinshare(api.url, "vm", "cp", "-", f"one:{guest}/words", stdin=b"some words")
        assert done.returncode == 0, done.stderr
        done = await twinshare(api.url, "vm", "cp", f"one:{guest}/words", "-")
        assert done.stdout == b"some words"
        missing = await twinshare(api.url, "vm", "cp", f"one:{guest}/none", str(here))
        assert missing.returncode == 1
        both = await twinshare(api.url, "vm", "cp", "one:/a", "one:/b")
        assert both.returncode == 2


async def test_a_guest_that_boots_is_waited_for_and_that_is_said(tmp_path: Path) -> None:
    """Its program starts when the command line has said that it waits."""
    notice, program = trio.Event(), GuestProcess(tmp_path / "guest")
    async with served(tmp_path / "node") as api, trio.open_nursery() as nursery:

        async def boot(port: trio.SocketStream) -> None:
            await notice.wait()
            nursery.start_soon(program.run)
            await program.serve(port)

        made = await api.node.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": spec()})
        hypervisor = api.node.vms.hypervisor
        assert isinstance(hypervisor, MemoryHypervisor)
        hypervisor.serve_channel(made.id, boot)
        await api.node.call(LOCAL_ADMIN, TABLE["start_vm"], {"vm": "one"})
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-m", "twinshare", "vm", "exec", "one", "--", "echo", "up"],
                stdin=b"",
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "TWINSHARE_API": api.url},
            )
        )
        assert process.stdout is not None
        assert process.stderr is not None
        said = b""
        with trio.fail_after(60):
            while not said.endswith(b"\n"):
                said += await process.stderr.receive_some()
            assert said == b"waiting for the guest of 'one' to boot\n"
            notice.set()
            assert await process.stdout.receive_some() == b"up\n"
            await process.wait()
        done = await twinshare(api.url, "vm", "exec", "one", "--", "echo", "up")
        assert done.stderr == b""
        nursery.cancel_scope.cancel()


async def test_a_command_line_that_is_too_long_is_refused_in_a_line(tmp_path: Path) -> None:
    words = ["x" * 60] * 2200
    done = await twinshare("http://127.0.0.1:1", "vm", "exec", "one", "--", *words)
    assert (done.returncode, done.stderr) == (
        1, b"Error: the command line and the environment may have 131072 bytes each\n",
    )  # fmt: skip


async def test_a_directory_that_is_copied_again_goes_on_where_it_was(tmp_path: Path) -> None:
    """What an earlier copy has brought stays as it is, which its inode shows; what lacks or has changed is copied."""
    guest, here = tmp_path / "guest", tmp_path / "here"
    for folder in (guest / "far", here / "site" / "inner", here / "back"):
        folder.mkdir(parents=True)
    for number in range(40):
        (here / "site" / "inner" / str(number)).write_text(f"words {number}")
    ways = [
        (here / "site", guest / "far" / "site", [str(here / "site"), f"one:{guest}/far"]),
        (guest / "far" / "site", here / "back" / "site", [f"one:{guest}/far/site", str(here / "back")]),
    ]
    async with running(tmp_path / "node") as api:
        for source, target, arguments in ways:
            done = await twinshare(api.url, "vm", "cp", "-r", *arguments)
            assert done.returncode == 0, done.stderr
            before = {file.name: file.stat().st_ino for file in (target / "inner").iterdir()}
            assert len(before) == 40
            (target / "inner" / "7").unlink()
            (source / "inner" / "9").write_text("other words")
            done = await twinshare(api.url, "vm", "cp", "-r", *arguments)
            assert done.returncode == 0, done.stderr
            after = {file.name: file.stat().st_ino for file in (target / "inner").iterdir()}
            assert {name for name in before if after[name] == before[name]} >= set(before) - {"7", "9"}
            assert (target / "inner" / "7").read_text() == "words 7"
            assert (target / "inner" / "9").read_text() == "other words"
            (source / "inner" / "9").write_text("words 9")


async def test_names_of_a_guest_move_no_cursor(tmp_path: Path) -> None:
    """A guest chooses them: what a terminal would obey is printed as an escape; the names stay whole on the disk."""
    names = [b"a\x1b[2Jb", b"\xc2\x9b31m", b"new\nline", b"\xe2\x80\xaefdp.exe", b"\xff\xfe"]
    guest, here = tmp_path / "guest", tmp_path / "here"
    guest.mkdir()
    for name in names:
        (guest / os.fsdecode(name)).mkdir()
        (guest / os.fsdecode(name) / "link").symlink_to("/")
    async with running(tmp_path / "node") as api:
        done = await twinshare(api.url, "vm", "cp", "-r", f"one:{guest}", str(here))
        assert (done.returncode, done.stderr.count(b"left out")) == (1, len(names))
        missing = await twinshare(api.url, "vm", "cp", b"one:/\x1b[2J\xff".decode(errors="surrogateescape"), str(here))
        assert missing.returncode == 1
        started = await twinshare(api.url, "vm", "exec", "one", "--", "sh", "-c", "exit 0 # \x1b[2J")
        listed = await twinshare(api.url, "vm", "sessions", "one")
        assert (started.returncode, listed.returncode) == (0, 0)
    said = done.stderr + missing.stderr + listed.stdout
    assert not any(sign in said for sign in (b"\x1b", b"\xc2\x9b", b"\xe2\x80\xae", b"\xff"))
    assert rb"\x1b[2J" in listed.stdout
    assert sorted(os.listdir(os.fsencode(here))) == sorted(names)  # noqa: PTH208 - as bytes


async def test_a_copy_that_is_cut_goes_on(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(3 << 20)
    (tmp_path / "big").write_bytes(content)
    async with running(tmp_path / "node") as api:
        done = await twinshare(api.url, "vm", "cp", str(tmp_path / "big"), f"one:{tmp_path}/there")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "there").read_bytes() == content
        async with cut(api, 1 << 40, 1_000_000) as (url, _):
            for _ in range(5):
                done = await twinshare(url, "vm", "cp", f"one:{tmp_path}/there", str(tmp_path / "back"))
                if done.returncode == 0:
                    break
        assert (tmp_path / "back").read_bytes() == content
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]  # noqa: PTH208 - in a task


async def test_ssh_gets_our_transport_key_and_known_hosts(tmp_path: Path) -> None:
    """`ssh` is a program that prints its arguments: the real one is in tests/system."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "ssh").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    (tools / "ssh").chmod(0o755)
    async with running(tmp_path / "node") as api:
        more: dict[str, Any] = {"PATH": f"{tools}:{os.environ['PATH']}", "TWINSHARE_DATA_DIR": str(tmp_path / "mine")}
        done = await twinshare(api.url, "vm", "ssh", "one", "-p", "22", "uptime", **more)
        words = done.stdout.decode().splitlines()
        assert words[-4:] == ["one.twin", "-p", "22", "uptime"], done.stderr
        assert any(word.startswith("ProxyCommand=") and "vm ssh-proxy" in word for word in words)
        assert (tmp_path / "mine" / "ssh" / "id_ed25519").stat().st_mode & 0o777 == 0o600
        config = (await twinshare(api.url, "ssh-config", **more)).stdout.decode()
        assert config.startswith("Host *.twin\n")
        assert f"    UserKnownHostsFile {tmp_path}/mine/ssh/known_hosts\n" in config
        assert "    HashKnownHosts no\n" in config


def test_host_keys_of_a_former_vm_of_the_name_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINSHARE_DATA_DIR", str(tmp_path))
    keys, key = HostKeys(), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA"
    keys.keep("web.twin", "id-1", [key])
    keys.keep("other.twin", "id-3", [key + "B", "no key", "ssh-rsa AAAA\nweb.twin ssh-rsa AAAAAAAAAAAAAAAAAAAAAA"])
    keys.keep("web.twin", "id-1", [])
    assert sorted(keys.file.read_text().splitlines()) == [f"other.twin {key}B id-3", f"web.twin {key} id-1"]
    keys.keep("web.twin", "id-2", [])
    assert keys.file.read_text().splitlines() == [f"other.twin {key}B id-3"]
    with pytest.raises(InvalidRequest):
        keys.keep("a b", "id-1", [key])


def test_keys_under_hashed_names_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's ssh hashes names: the key of a former VM stayed, and the next one of its name was refused."""
    monkeypatch.setenv("TWINSHARE_DATA_DIR", str(tmp_path))
    keys = HostKeys()
    public = tmp_path / "host"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", public], check=True)
    keys.file.write_text(f"web.twin {public.with_suffix('.pub').read_text()}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", keys.file], check=True, capture_output=True)
    assert "web.twin" not in keys.file.read_text()
    keys.accept("web.twin", "id-2")
    assert keys.file.read_text() == "# web.twin id-2\n"


def test_keys_that_ssh_accepted_go_with_their_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINSHARE_DATA_DIR", str(tmp_path))
    keys, accepted = HostKeys(), "web.twin ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA"

    def accept(vm: str, *, again: bool = False) -> list[str]:
        """What ssh finds, before it adds the key itself."""
        keys.accept("web.twin", vm, again=again)
        found = [line for line in keys.file.read_text().splitlines() if not line.startswith("#")]
        if not found:
            keys.file.write_text(f"{keys.file.read_text()}{accepted}\n")
        return found

    keys.keep("other.twin", "id-3", ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA"])
    other = keys.file.read_text().strip()
    keys.file.write_text(f"{accepted}\n{other}\n")
    assert accept("id-1") == [other], "nobody knows of which VM the key was"
    keys.file.write_text(f"{keys.file.read_text()}{accepted}\n")
    assert accept("id-1") == [other, accepted]
    assert accept("id-2") == [other], "it is another VM"
    keys.file.write_text(f"{keys.file.read_text()}{accepted}\n")
    assert accept("id-2", again=True) == [other], "the guest makes new keys at each boot"
    keys.keep("web.twin", "id-2", ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5BBBB"])
    assert accept("id-2") == [other, "web.twin ssh-ed25519 AAAAC3NzaC1lZDI1NTE5BBBB id-2"]


def test_names_are_read_as_people_write_them() -> None:
    assert read_end("web:/srv/a:b") == CopyEnd("web", "/srv/a:b")
    assert read_end("web@alice:x") == CopyEnd("web@alice", "x")
    assert [read_end(text) for text in ("./a:b", "/a:b", "-", "plain")] == [
        CopyEnd(None, text) for text in ("./a:b", "/a:b", "-", "plain")
    ]
    assert [read_host(text) for text in ("web.twin", "web.alice.home.twin", "web")] == [
        ("web", None), ("web", "alice.home"), ("web", None),
    ]  # fmt: skip
    assert Copy is not None
