"""The smaller services of a node for one caller: operations, health and capacity, tokens."""

from __future__ import annotations

from datetime import datetime

from ..protocols.access import Caller
from ..protocols.node import Account, Capacity, Health, Token, TokenRequest
from ..protocols.operation import Operation, OperationState
from .health import NodeHealth
from .journal.journal import Journal
from .tokens import TokenStore


class LocalOperations:
    """`OperationService`: everybody may read, a caller cancels what it began."""

    def __init__(self, journal: Journal, caller: Caller) -> None:
        self._journal, self._caller = journal, caller

    async def list_operations(
        self, state: OperationState | None = None, until: datetime | None = None
    ) -> list[Operation]:
        return list(await self._journal.list(state, until))

    async def get_operation(self, id: str) -> Operation:
        return await self._journal.get(id)

    async def wait_operation(self, id: str, timeout: float = 60) -> Operation:
        return await self._journal.wait(id, timeout)

    async def cancel_operation(self, id: str) -> Operation:
        operation = await self._journal.get(id)
        self._caller.require_ownership(operation.principal, f"operation {id}")
        return await self._journal.cancel(id)


class LocalNode:
    """`NodeService`."""

    def __init__(self, state: NodeHealth, caller: Caller) -> None:
        self._state, self._caller = state, caller

    async def health(self) -> Health:
        return self._state.report()

    async def whoami(self) -> Account:
        return Account(principal=self._caller.principal, role=self._caller.role)

    async def capacity(self) -> Capacity:
        return self._state.capacity()


class LocalTokens:
    """`TokenService`."""

    def __init__(self, tokens: TokenStore) -> None:
        self._tokens = tokens

    async def list_tokens(self) -> list[Token]:
        return list(self._tokens.list())

    async def create_token(self, token: TokenRequest) -> Token:
        return await self._tokens.create(token)

    async def revoke_token(self, name: str) -> Token:
        return await self._tokens.revoke(name)
