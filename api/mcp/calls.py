"""Calls of tools: a node's answer as text within bounds, an error as a sentence that a model can act on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ...protocols.access import Role
from ...protocols.errors import DeadlineExceeded, TwinshareError
from ...protocols.node import Account
from ...protocols.operation import Operation
from ..rest_client import RESTClient
from .file_tools import FileTools, call_file_tool
from .tools import Tool

MAX_TEXT = 64 << 10
"""Bytes of a result that are handed to a model."""
WAIT = 45.0
"""Seconds that a tool waits for an operation; clients give up a call after a minute."""
_CUT = "\n… cut off: the whole result has {size} bytes. Ask for less, with a filter, an offset or a limit."


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool answers."""

    text: str
    is_error: bool = False


async def role_of(client: RESTClient) -> Role:
    """Return the role that the node gives this client. Raises: what the node raises."""
    account: Account = await client.call("whoami")
    return account.role


async def call_tool(client: RESTClient, tool: Tool, arguments: Mapping[str, Any]) -> Outcome:
    """Call a tool. A mutation that takes longer than `WAIT` goes on, and its operation is the answer."""
    try:
        wanted, peer = tool.read(arguments)
        if tool.method.service is FileTools:
            return _shown(await call_file_tool(client, tool.name, wanted, peer))
        if not tool.method.journalled:
            return _shown(await client.call(tool.method, wanted, peer))
        return await _run(client, tool, wanted, peer)
    except TwinshareError as error:
        return Outcome(f"{error.code}: {error.message}", is_error=True)


async def _run(client: RESTClient, tool: Tool, arguments: Mapping[str, Any], peer: str | None) -> Outcome:
    operation = await client.begin(tool.method, arguments, peer)
    try:
        return _shown(await client.wait(operation, peer, timeout=WAIT))
    except DeadlineExceeded:
        now: Operation = await client.call("get_operation", {"id": operation.id}, peer)
        if now.error is not None:
            raise
        said = f"It goes on as operation {operation.id}: call wait_operation with this id"
        return Outcome(f"{said}{f' and on={peer}' if peer else ''}.\n{_json(now)}")


def _shown(result: Any) -> Outcome:
    return Outcome(_json(result))


def _json(result: Any) -> str:
    data = msgspec.json.format(msgspec.json.encode(result), indent=1)
    if len(data) <= MAX_TEXT:
        return data.decode()
    return data[:MAX_TEXT].decode(errors="ignore") + _CUT.format(size=len(data))
