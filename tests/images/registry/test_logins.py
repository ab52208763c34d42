"""Whose login at a registry serves whom: the node's its user and admins, others as it is configured, or their own."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.images.registry.servers import PASSWORD, USER, Exchange, Settings, no_pause, scripted
from tests.images.registry.test_client import BLOB, MANIFEST
from tests.images.stores import disk_store
from tests.images.test_store import random_disk
from twinshare.agent.images.contract_samples import pieces, quiet
from twinshare.agent.images.exchange import DiskImageExchange, open_image_exchange
from twinshare.agent.images.port import Requester
from twinshare.agent.images.registry import manifest as m
from twinshare.agent.images.registry.client import Repository, open_registry_client
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import RegistryFailed, TwinshareError
from twinshare.protocols.image import RegistryCredentials

NODES = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
OWNS = "Basic " + base64.b64encode(b"ann:her-own").decode()
OPERATOR = Caller(principal="token:ci", role=Role.OPERATOR)
PEER = Caller(principal="12D3KooWPeer", role=Role.OPERATOR, from_peer=True)
PEERS_ADMIN = Caller(principal="12D3KooWPeer", role=Role.ADMIN, from_peer=True)
OTHERS = (OPERATOR, PEER, PEERS_ADMIN)


class Registry:
    """Wants a login for everything; `seen` are the logins that it got, in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.settings = Settings("")

    async def handle(self, exchange: Exchange) -> None:
        login = exchange.headers.get("authorization", "")
        if login not in (NODES, OWNS):
            await exchange.answer(401, www_authenticate='Basic realm="x"')
            return
        self.seen.append(login)
        kind = {"content_type": m.MANIFEST} if "/manifests/" in exchange.target else {}
        await exchange.answer(200, MANIFEST.encode(), **kind)


@asynccontextmanager
async def registry(folder: Path) -> AsyncIterator[Registry]:
    made = Registry()
    (folder / "password").write_text(PASSWORD)
    async with scripted(made.handle) as settings:
        made.settings = replace(settings, username=USER, password_file=str(folder / "password"))
        yield made


async def login_used(found: Registry, settings: Settings, requester: Requester, *, push: bool = False) -> str:
    """The login with which a request comes to the registry; "" when it is refused."""
    found.seen.clear()
    async with open_registry_client([settings], sleep=no_pause) as client:
        repository = Repository(settings.host, "a")
        acting = client.acting_for(requester, push=push)
        with suppress(RegistryFailed):
            await (acting.has_blob(repository, BLOB.digest) if push else acting.manifest(repository, "latest"))
    return "".join(found.seen)


async def test_the_login_of_the_node_serves_its_user_and_admins(tmp_path: Path) -> None:
    async with registry(tmp_path) as there:
        for caller in (LOCAL_ADMIN, Caller(principal="token:boss", role=Role.ADMIN)):
            for push in (False, True):
                assert await login_used(there, there.settings, Requester(caller), push=push) == NODES
        for caller in OTHERS:
            for push in (False, True):
                assert await login_used(there, there.settings, Requester(caller), push=push) == "", caller


async def test_others_use_it_as_their_role_is_listed(tmp_path: Path) -> None:
    async with registry(tmp_path) as there:
        pulls = replace(there.settings, roles=[Role.OPERATOR])
        for caller in OTHERS:
            assert await login_used(there, pulls, Requester(caller)) == NODES
            assert await login_used(there, pulls, Requester(caller), push=True) == "", "a push is listed by itself"
        viewer = Caller(principal="token:eyes", role=Role.VIEWER)
        assert await login_used(there, pulls, Requester(viewer)) == ""
        pushes = replace(there.settings, push_roles=[Role.ADMIN])
        for caller, login in ((PEERS_ADMIN, NODES), (PEER, ""), (OPERATOR, "")):
            assert await login_used(there, pushes, Requester(caller), push=True) == login
            assert await login_used(there, pushes, Requester(caller)) == ""


async def test_the_login_in_docker_s_configuration_is_the_node_s_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    async with registry(tmp_path) as there:
        plain = Settings(there.settings.host)
        auth = {plain.host: {"auth": NODES.removeprefix("Basic ")}}
        (tmp_path / "config.json").write_text(json.dumps({"auths": auth}))
        assert await login_used(there, plain, Requester()) == NODES
        for caller in OTHERS:
            assert await login_used(there, plain, Requester(caller)) == ""


async def test_a_login_of_the_caller_is_used_for_its_registry_and_its_request_alone(tmp_path: Path) -> None:
    async with registry(tmp_path) as there, open_registry_client([there.settings], sleep=no_pause) as client:
        host = there.settings.host
        own = RegistryCredentials(registry=host, username="ann", password="her-own")
        elsewhere = RegistryCredentials(registry="ghcr.io", username="ann", password="her-own")
        repository = Repository(host, "a")
        await client.acting_for(Requester(PEER, own)).manifest(repository, "latest")
        await client.acting_for(Requester(LOCAL_ADMIN)).manifest(repository, "latest")
        assert there.seen == [OWNS, NODES], "one does not serve the other"
        for requester in (Requester(PEER), Requester(PEER, elsewhere), Requester(LOCAL_ADMIN, elsewhere)):
            with pytest.raises(RegistryFailed, match="wants a login"):
                await client.acting_for(requester).manifest(repository, "latest")
        assert "her-own" not in repr(own)


@asynccontextmanager
async def exchange_with_image(folder: Path, settings: Settings) -> AsyncIterator[DiskImageExchange]:
    async with (
        disk_store(folder / "images") as store,
        open_image_exchange(store, registries=[settings], sleep=no_pause) as exchange,
    ):
        await store.add_image("web", pieces(random_disk(1)), report=quiet)
        yield exchange


async def test_every_way_to_a_registry_goes_by_the_requester(tmp_path: Path) -> None:
    """A push, its dry run, a pull: an operator peer made the node log in with its own password."""
    async with registry(tmp_path) as there, exchange_with_image(tmp_path, there.settings) as exchange:
        ref = f"{there.settings.host}/company/web:v1"
        for caller in OTHERS:
            requester = Requester(caller)
            for attempt in (
                lambda r: exchange.push_image("web", ref, report=quiet, requester=r),
                lambda r: exchange.push_image("web", ref, report=quiet, dry_run=True, requester=r),
                lambda r: exchange.pull_image(ref, report=quiet, requester=r),
            ):
                with pytest.raises(TwinshareError, match="wants a login") as refused:
                    await attempt(requester)
                assert PASSWORD not in refused.value.message
        assert there.seen == []
        await exchange.push_image("web", ref, report=quiet, dry_run=True)
        assert there.seen == [NODES]
