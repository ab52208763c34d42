"""Tokens: what one opened ends with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.stopwatch import within
from twinshare.agent.state import open_state
from twinshare.agent.tokens import TokenStore, open_tokens
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import TokenNotFound, Unauthenticated, Unavailable
from twinshare.protocols.node import TokenRequest

CI = Caller(principal="token:ci", role=Role.OPERATOR)


@asynccontextmanager
async def store(folder: Path) -> AsyncIterator[TokenStore]:
    async with open_state(folder / "db") as state:
        yield await open_tokens(state, "own")


async def stay(tokens: TokenStore, caller: Caller, task_status: trio.TaskStatus[None]) -> None:
    with tokens.bound(caller):
        task_status.started()
        await trio.sleep_forever()


async def hold(tokens: TokenStore, caller: Caller, task_status: trio.TaskStatus[None]) -> None:
    with pytest.raises(Unauthenticated):
        await stay(tokens, caller, task_status)


async def test_what_a_token_opened_ends_when_it_is_revoked(tmp_path: Path) -> None:
    async with store(tmp_path) as tokens:
        await tokens.create(TokenRequest(name="ci"))
        await tokens.create(TokenRequest(name="other"))
        assert tokens.holds("token:ci")
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(hold, tokens, CI)
                await nursery.start(hold, tokens, CI)
                await tokens.revoke("other")
                await tokens.revoke("ci")
        assert not tokens.holds("token:ci")
        assert not tokens._opened


async def test_what_a_token_opened_ends_at_its_end(tmp_path: Path) -> None:
    async with store(tmp_path) as tokens:
        await tokens.create(TokenRequest(name="ci", expires_in=1))
        with within(3), pytest.raises(Unauthenticated), tokens.bound(CI):
            await trio.sleep_forever()
        assert not tokens.holds("token:ci")


async def test_a_revoked_token_opens_nothing_and_others_are_not_bound(tmp_path: Path) -> None:
    async with store(tmp_path) as tokens:
        with pytest.raises(Unauthenticated), tokens.bound(CI):
            pytest.fail("the block must not run")
        with tokens.bound(LOCAL_ADMIN):
            assert tokens.holds("local")
        assert not tokens._opened


async def test_what_cannot_be_written_is_not_given_out_and_stays_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_state(tmp_path / "db") as state:
        tokens = await open_tokens(state, "own")
        old = await tokens.create(TokenRequest(name="old", role=Role.VIEWER))
        with monkeypatch.context() as broken:

            async def execute(*_: object) -> None:
                raise Unavailable("the database cannot be written")

            broken.setattr(state, "execute", execute)
            with pytest.raises(Unavailable):
                await tokens.create(TokenRequest(name="new", role=Role.VIEWER))
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await tokens.revoke("old")
            assert tokens.list() == []
            assert tokens.authenticate(str(old.secret)) is None
            await tokens.flush()
        assert len(await state.query("SELECT * FROM tokens")) == 1
        await tokens.flush()
        assert await state.query("SELECT * FROM tokens") == []
        with pytest.raises(TokenNotFound):
            await tokens.revoke("old")
        await tokens.create(TokenRequest(name="new", role=Role.VIEWER))
