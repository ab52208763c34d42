"""`twinshare ui`: open the node's page in a browser, here or on another machine."""

from __future__ import annotations

import getpass
import ipaddress
import platform
import webbrowser
from urllib.parse import urlsplit

import click

from ..exchange import plain
from .node import open_client
from .output import print_json, say
from .parameters import json_option

_PORTS = {"http": 80, "https": 443}


@click.command()
@click.option("--remote", is_flag=True, help="Print how to open the page from another machine.")
@click.option("--print", "printed", is_flag=True, help="Print the link only, and open no browser.")
@json_option
def ui(remote: bool, printed: bool, as_json: bool) -> None:
    """Open the node's page in a browser.

    The link works once, within a minute; the browser then has a session of 12 hours with the caller's role.
    """
    with open_client() as client:
        session = client.send(plain("POST", "/session", dict[str, str]))
    link = session["link"]
    if as_json:
        return print_json(session)
    if remote:
        for line in _from_elsewhere(link):
            say(line)
    elif not printed and webbrowser.open(link):
        say("the page opens in the browser; if it does not, open this link within a minute:")
    return click.echo(link)


def _from_elsewhere(link: str) -> list[str]:
    """What somebody at another machine does first."""
    url = urlsplit(link)
    port = url.port or _PORTS[url.scheme]
    if not _is_loopback(url.hostname or ""):
        return ["open this link on the other machine within a minute:"]
    return [
        "the node listens on this machine alone; on the other machine run",
        f"    ssh -N -L {port}:{url.hostname}:{port} {getpass.getuser()}@{platform.node()}",
        "and open this link there within a minute (or serve others directly: api.listen, api.tls_cert, api.tls_key):",
    ]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
