"""`twinshare mcp`: the node's operations as tools of the Model Context Protocol."""

from __future__ import annotations

import ipaddress

import click

from .node import find_node
from .output import say


class NotInstalled(click.ClickException):
    exit_code = 3


@click.command("mcp")
@click.option("--http", metavar="HOST:PORT", help="Serve HTTP on a loopback address, such as 127.0.0.1:8090.")
def mcp(http: str | None) -> None:
    """Serve the node's operations as tools of the Model Context Protocol, over stdin and stdout.

    A tool is listed if the account's role may call it: make a token of the role that the model is to have, and set
    TWINSHARE_TOKEN. Over HTTP each client sends its own token.

    \b
    twinshare token create agent --role operator
    TWINSHARE_TOKEN=… twinshare mcp
    twinshare mcp --http 127.0.0.1:8090      then: http://127.0.0.1:8090/mcp
    """
    host, port = _loopback(http) if http else ("", 0)
    try:
        from ..mcp.transports import run_http, run_stdio
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"mcp", "mcp_types", "uvicorn", "starlette"}:
            raise
        raise NotInstalled("this needs the Python package 'mcp': pip install 'twinshare-agent[mcp]'") from None
    node = find_node()
    if http is None:
        run_stdio(node.url, node.token)
        return
    try:
        run_http(node.url, host, port, lambda url: say(f"MCP is served at {url}"))
    except OSError as error:
        raise click.ClickException(f"cannot listen on {http}: {error.strerror or error}") from None


def _loopback(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = "127.0.0.1" if host in {"", "localhost"} else host.strip("[]")
    try:
        if ipaddress.ip_address(host).is_loopback and port.isascii() and port.isdigit() and int(port) < 65536:
            return host, int(port)
    except ValueError:
        pass
    raise click.UsageError("--http takes HOST:PORT of the loopback: tokens travel unencrypted")
