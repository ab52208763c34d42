"""Commands, sessions and files of guests over REST and the clients: exit codes, offsets, cuts, ranges, roles, peers."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from wsproto.events import CloseConnection, TextMessage

from tests.agent.nodes import spec
from tests.api.served import TABLE, Served, served
from tests.api.test_console import raw
from tests.stopwatch import within
from twinshare.api.rest_client import RESTClient
from twinshare.api.sync import RESTClient as BlockingClient
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.errors import (
    FileNotFound,
    Forbidden,
    GuestUnreachable,
    InvalidRequest,
    RangeNotSatisfiable,
    SessionNotFound,
    TwinshareError,
)
from twinshare.protocols.guest_stream import Channel, Finished, Output
from twinshare.protocols.node import TokenRequest


@asynccontextmanager
async def running(folder: Path, auth: str = "local") -> AsyncIterator[Served]:
    """A served node with the running VM `one`, whose guest runs the guest program."""
    async with served(folder, guests="?guest_program=1", auth=auth) as api:
        await api.node.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": spec(start=True)})
        yield api


async def read_on(stream: Any) -> tuple[bytes, bytes, Finished]:
    """Read to the end: stdout, stderr, how it ended. Offsets follow each other."""
    out, err, at = b"", b"", stream.opened.offset
    with trio.fail_after(30):
        async for message in stream:
            if isinstance(message, Finished):
                return out, err, message
            assert isinstance(message, Output)
            assert message.offset == at
            at += len(message.data)
            if message.channel is Channel.STDERR:
                err += message.data
            else:
                out += message.data
    raise AssertionError("the stream has no end")


async def test_a_stream_into_a_guest_ends_with_the_session_of_the_page(tmp_path: Path) -> None:
    async with running(tmp_path, auth="token") as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.ADMIN))
        headers = {"authorization": f"Bearer {made.secret}"}
        command = {"command": ["cat"], "detach": True, "interactive": True}
        started = (await api.client.post("/api/vm/one/exec", json=command, headers=headers)).json()
        link = (await api.client.post("/api/session", headers=headers)).json()["link"]
        cookie = (await api.client.get(link)).headers["set-cookie"].partition(";")[0]
        [page] = (await api.client.get("/api/sessions", headers=headers)).json()["sessions"]
        path = f"/api/vm/one/sessions/{started['session']}/attach"
        async with raw(api, path, Cookie=cookie, Origin="http://localhost") as socket:
            assert (await socket.next(TextMessage)).data.startswith('{"opened"')
            assert (await api.client.delete(f"/api/sessions/{page['id']}", headers=headers)).status_code == 200
            with within(1):
                assert (await socket.next(CloseConnection)).code == 4401


async def test_exec_answers_with_output_and_exit_code(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        body = {"command": ["sh", "-c", "echo x; echo y >&2; cat; exit 3"], "stdin": "words", "timeout": 20}
        done = (await api.client.post("/api/vm/one/exec", json=body)).json()
        assert (done["stdout"], done["stderr"], done["exit_code"], done["truncated"]) == ("x\nwords", "y\n", 3, False)
        wrongs: list[dict[str, Any]] = [{}, {"command": []}, {"command": "ls"}, {"command": ["ls"], "nonsense": 1}]
        late = await api.client.post("/api/vm/one/exec", json={"command": ["sleep", "60"], "timeout": 1})
        assert late.json()["exit_code"] == 124
        for wrong in wrongs:
            assert (await api.client.post("/api/vm/one/exec", json=wrong)).status_code == 400
        assert [one["exit_code"] for one in (await api.get("/api/vm/one/sessions"))["sessions"]] == [3, 124]


async def test_a_session_is_attached_to_and_read_on(tmp_path: Path) -> None:
    async with running(tmp_path) as api, RESTClient(api.url) as client:
        command = ["sh", "-c", "echo one; echo two >&2; read line; echo got $line; exit 4"]
        made = await client.exec_vm("one", command, detach=True, interactive=True)
        with trio.fail_after(30):
            async with client.attach_session("one", made.session) as stream:
                heard = b""
                while len(heard) < 8:
                    message = await stream.receive()
                    assert isinstance(message, Output)
                    heard += message.data
        async with client.attach_session("one", made.session, offset=len(heard)) as stream:
            await stream.send(b"xxyy\n", offset=stream.opened.input_offset)
            out, err, end = await read_on(stream)
        assert (out, err, end.exit_code) == (b"got xxyy\n", b"", 4)
        async with client.attach_session("one", made.session) as stream:
            out, err, end = await read_on(stream)
        assert (out, err, end.exit_code) == (b"one\ngot xxyy\n", b"two\n", 4)
        with pytest.raises(SessionNotFound):
            async with client.attach_session("one", "0" * 16):
                pass


async def test_input_that_was_accepted_is_not_taken_twice(tmp_path: Path) -> None:
    async with running(tmp_path) as api, RESTClient(api.url) as client:
        made = await client.exec_vm("one", ["cat"], detach=True, interactive=True)
        async with client.attach_session("one", made.session) as stream:
            await stream.send(b"hello ", offset=0)
            with trio.fail_after(30):
                while (await client.guests().get_session("one", made.session)).input_offset < 6:
                    await trio.sleep(0.01)
        async with client.attach_session("one", made.session) as stream:
            await stream.send(b"hello world", offset=0)
            await stream.send_eof()
            out, _, end = await read_on(stream)
        assert (out, end.exit_code) == (b"hello world", 0)


async def test_a_terminal_has_a_size_and_takes_signals(tmp_path: Path) -> None:
    async with running(tmp_path) as api, RESTClient(api.url) as client:
        script = "trap 'echo caught; exit 7' INT; stty size; read line; stty size; while :; do sleep 1; done"
        command = ["sh", "-c", script]
        made = await client.exec_vm("one", command, detach=True, terminal=True, interactive=True, columns=90, rows=30)
        async with client.attach_session("one", made.session) as stream:
            heard = b""
            with trio.fail_after(30):
                while b"30 90" not in heard:
                    heard += getattr(await stream.receive(), "data", b"")
                await stream.resize(100, 40)
                await stream.send(b"\n")
                while b"40 100" not in heard:
                    heard += getattr(await stream.receive(), "data", b"")
            await stream.signal("INT")
            with trio.fail_after(30):
                while not isinstance(end := await stream.receive(), Finished):
                    pass
        assert end.exit_code == 7


async def test_files_are_written_and_read(tmp_path: Path) -> None:
    there = tmp_path / "in the guest"
    there.mkdir()
    content = os.urandom(300_000)
    async with running(tmp_path) as api, RESTClient(api.url) as client:
        path = f"{there}/a file"
        made = await client.write_file("one", path, content, mode=0o640, modified=1_000_000_000.0)
        assert (made.size, made.mode) == (len(content), 0o640)
        assert (there / "a file").read_bytes() == content
        assert await client.read_file("one", path) == content
        assert await client.read_file("one", path, offset=1000, length=50) == content[1000:1050]
        part = await api.client.get("/api/vm/one/file", params={"path": path}, headers={"Range": "bytes=299990-"})
        assert (part.status_code, part.content) == (206, content[-10:])
        assert part.headers["content-range"] == "bytes 299990-299999/300000"
        with pytest.raises(RangeNotSatisfiable):
            await client.read_file("one", path, offset=300_000, length=1)
        with pytest.raises(FileNotFound):
            await client.read_file("one", f"{there}/none")
        for size in (2, 4):
            announced = {"path": path, "size": str(size)}
            octets = {"Content-Type": "application/octet-stream"}
            put = await api.client.put("/api/vm/one/file", params=announced, content=b"abc", headers=octets)
            assert (put.status_code, put.json()["details"]) == (400, {"path": "size"})
        assert (there / "a file").read_bytes() == content
        odd = os.fsencode(there) + b"/\xff\xfe"
        await client.write_file("one", odd, b"")
        assert await client.read_file("one", odd) == b""
        assert len(await client.list_files("one", str(there))) == 2
        named = {"path_base64": b64encode(os.fsencode(there)).decode()}
        assert len((await api.get("/api/vm/one/files", params=named))["files"]) == 2
        gone = await api.client.request("DELETE", "/api/vm/one/file", params={"path": path})
        assert gone.status_code == 200
        assert not (there / "a file").exists()


async def test_a_sparse_file_is_written_as_it_reads(tmp_path: Path) -> None:
    """Only disks that become images are sent packed: a guest would keep the packed bytes."""
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(17 << 20)
        file.seek(0, os.SEEK_END)
        file.write(b"end")
    async with running(tmp_path) as api, RESTClient(api.url) as client:
        made = await client.write_file("one", f"{tmp_path}/copy", source)
        assert made.size == source.stat().st_size
        assert (tmp_path / "copy").read_bytes() == source.read_bytes()


async def test_an_upload_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    content = os.urandom(200_000)
    async with running(tmp_path) as api:
        query: dict[str, Any] = {"path": f"{tmp_path}/whole", "upload": "0123456789abcdef", "size": len(content)}
        octets = {"Content-Type": "application/octet-stream"}

        async def half() -> AsyncIterator[bytes]:
            yield content[:150_000]
            await trio.sleep_forever()

        def has_begun() -> bool:
            return any(part.stat().st_size for part in tmp_path.glob(".whole.*.part"))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                put = partial(api.client.put, params=query, content=half(), headers=octets)
                nursery.start_soon(put, "/api/vm/one/file")
                while not has_begun():
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
        assert not (tmp_path / "whole").exists()
        refused = await api.client.put(
            "/api/vm/one/file", params={**query, "offset": 200_000}, content=b"", headers=octets
        )
        at = refused.json()["details"]["offset"]
        assert 0 < at <= 150_000
        done = await api.client.put(
            "/api/vm/one/file", params={**query, "offset": at}, content=content[at:], headers=octets
        )
        assert done.status_code == 200, done.text
        assert (tmp_path / "whole").read_bytes() == content


def test_the_blocking_client_has_them_too(tmp_path: Path) -> None:
    def use(url: str) -> None:
        with BlockingClient(url) as client:
            done = client.exec_vm("one", ["sh", "-c", "echo $A; exit 2"], env={"A": "b"})
            assert (done.stdout, done.exit_code) == ("b\n", 2)
            client.write_file("one", f"{tmp_path}/blocking", b"words")
            assert client.read_file("one", f"{tmp_path}/blocking") == b"words"
            assert "blocking" in [file.name for file in client.list_files("one", str(tmp_path))]

    async def main() -> None:
        async with running(tmp_path) as api:
            await trio.to_thread.run_sync(use, api.url)

    trio.run(main)


async def test_a_viewer_and_another_operator_get_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        for role in (Role.VIEWER, Role.OPERATOR):
            asked = TokenRequest(name=f"t-{role}", role=role)
            token = (await api.node.call(LOCAL_ADMIN, TABLE["create_token"], {"token": asked})).secret
            async with RESTClient(api.url, token=token) as client:
                for attempt in (
                    client.exec_vm("one", ["true"]), client.read_file("one", "/etc/hostname"),
                    client.write_file("one", f"{tmp_path}/x", b"x"), client.list_files("one", "/"),
                ):  # fmt: skip
                    with pytest.raises(Forbidden):
                        await attempt
                with pytest.raises(Forbidden):
                    async with client.attach_session("one", "0" * 16):
                        pass


async def test_what_cannot_be_asked_is_said(tmp_path: Path) -> None:
    async with served(tmp_path) as api, RESTClient(api.url) as client:
        await api.node.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": spec(start=True)})
        with pytest.raises(GuestUnreachable):
            await client.exec_vm("one", ["true"])
        with pytest.raises(InvalidRequest):
            await client.read_file("one", "")
        with pytest.raises(TwinshareError):
            async with client.attach_session("one", "not an id"):
                pass
