"""`twinshare agent`: a node on this machine, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ...agent.config import Config, ConfigError, load_config
from ...protocols.endpoint import endpoint


@click.command()
@click.option(
    "--config", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Configuration file."
)
@click.option("--data-dir", type=click.Path(file_okay=False), help="Where the node keeps everything.")
@click.option("--name", help="The node's name (the machine's host name).")
@click.option("--api", metavar="HOST:PORT", help="Where REST listens (127.0.0.1:8080); port 0 takes a free one.")
@click.option("--host", help="The host part of --api alone.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port part of --api alone.")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Where peers reach this node; repeatable.")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="A peer to try first; repeatable.")
@click.option("--hypervisor", metavar="URI", help="A libvirt URI, or fake:// for a hypervisor in memory.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", type=click.Choice(["text", "json"]))
def agent(file: Path | None, **given: Any) -> None:
    """Start a node on this machine and serve until SIGTERM or Ctrl-C. VMs outlive it.

    \b
    twinshare agent
    twinshare agent --data-dir /tmp/a --api 127.0.0.1:0 --listen /ip4/127.0.0.1/tcp/0
    twinshare serve --port 7777
    """
    try:
        config = load_config(file, _overrides(file, given))
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    from .daemon import run_agent

    run_agent(config)


def _overrides(file: Path | None, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the options say, by section; what they leave out is left to the file and the environment."""
    listen = given["api"]
    if given["host"] is not None or given["port"] is not None:
        if listen is not None:
            raise click.UsageError("--api says it all; leave out --host and --port")
        listen = _joined(load_config(file), given["host"], given["port"])
    chosen: dict[str, dict[str, Any]] = {
        "node": {"name": given["name"], "data_dir": given["data_dir"]},
        "api": {"listen": listen},
        "p2p": {"listen": list(given["listen"]) or None, "bootstrap": list(given["bootstrap"]) or None},
        "hypervisor": {"uri": given["hypervisor"]},
        "log": {"level": given["log_level"], "format": given["log_format"]},
    }
    said = {
        section: {key: value for key, value in keys.items() if value is not None} for section, keys in chosen.items()
    }
    return {section: keys for section, keys in said.items() if keys}


def _joined(config: Config, host: str | None, port: int | None) -> str:
    known_host, _, known_port = config.api.listen.rpartition(":")
    return endpoint((known_host if host is None else host).strip("[]"), known_port if port is None else port)
