"""The server of the SDK, with our tools. Who asks is decided for each request by the node that is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import mcp_types as types
from mcp.server import Server, ServerRequestContext
from mcp.shared.exceptions import MCPError

from ... import __version__
from ...protocols.errors import TwinshareError
from ..rest_client import RESTClient
from .calls import Outcome, call_tool, role_of
from .tools import Tool, make_tools, visible

INSTRUCTIONS = """Virtual machines of a pool of Linux machines. Make one with create_vm (image 'tiny' boots in seconds;
set ttl so that it is deleted after use), run commands in it with exec_vm, delete it with delete_vm. `on` names the peer
that is to do it."""

OpenClient = Callable[[ServerRequestContext[Any, Any]], AbstractAsyncContextManager[RESTClient]]
"""Opens the client of whoever sent a request."""


def make_server(open_client: OpenClient) -> Server[Any]:
    """Return a server whose tools are those of the node that `open_client` leads to."""
    tools = make_tools()

    async def list_tools(
        context: ServerRequestContext[Any, Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        try:
            async with open_client(context) as client:
                role = await role_of(client)
        except TwinshareError as error:
            raise MCPError(types.INTERNAL_ERROR, f"{error.code}: {error.message}") from None
        return types.ListToolsResult(tools=[_described(tool) for tool in visible(tools.values(), role)])

    async def run_tool(
        context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = tools.get(params.name)
        if tool is None:
            return _result(Outcome(f"not_found: there is no tool '{params.name}'", is_error=True))
        async with open_client(context) as client:
            return _result(await call_tool(client, tool, params.arguments or {}))

    return Server(
        "twinshare",
        version=__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=run_tool,
    )


def _described(tool: Tool) -> types.Tool:
    reads = not tool.method.mutates
    hints = types.ToolAnnotations(read_only_hint=reads, destructive_hint=tool.destructive, open_world_hint=False)
    return types.Tool(
        name=tool.name, description=tool.description, input_schema=dict(tool.schema), annotations=hints
    )  # fmt: skip


def _result(outcome: Outcome) -> types.CallToolResult:
    content = types.TextContent(type="text", text=outcome.text)
    return types.CallToolResult(content=[content], is_error=outcome.is_error)
