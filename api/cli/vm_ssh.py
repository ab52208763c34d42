"""`twinshare vm ssh`, `ssh-config` and the command behind both: the system's ssh, over the guest channel."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import click

from ...protocols.errors import GuestRefused, GuestUnreachable, InvalidRequest, TwinshareError
from ...protocols.guest import ExecRequest, ExecResult, GuestReport
from ..exchange import guest_path
from .boot_notice import boot_notice
from .node import NodeClient, open_client
from .output import say
from .parameters import VM_NAME, peer_option
from .ssh_files import HostKeys, ssh_options, user_key
from .vm_exec import guest_errors, guest_of

DOMAIN = ".twin"
_AUTHORIZE = """umask 077; mkdir -p .ssh && touch .ssh/authorized_keys &&
{ grep -qxF -- "$KEY" .ssh/authorized_keys || printf '%s\\n' "$KEY" >> .ssh/authorized_keys; }"""


@click.command("ssh", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", type=VM_NAME)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[SSH OPTIONS] [COMMAND]...")
@peer_option
def ssh(name: str, arguments: tuple[str, ...], peer: str | None) -> None:
    """Log into a VM with the system's ssh.

    As root, unless -l names another user. The guest needs no network.

    \b
    twinshare vm ssh web
    twinshare vm ssh --on alice web -l debian uptime
    twinshare vm ssh web -L 5432:localhost:5432
    """
    program = shutil.which("ssh")
    if program is None:
        raise NotInstalled("there is no ssh here; install openssh-client")
    if len(arguments) > 1 and arguments[0] == "--on":
        peer, arguments = peer or arguments[1], arguments[2:]
    with open_client() as client:
        found = client.call("get_vm", {"vm": name}, peer)
        at = client.locate(name, peer)[1]
    host = f"{found.name}.{at}{DOMAIN}" if at else f"{found.name}{DOMAIN}"
    options = [part for key, value in ssh_options(_proxy_command()) for part in ("-o", f"{key}={value}")]
    sys.stdout.flush()
    os.execv(program, ["ssh", *options, host, *arguments])  # noqa: S606 - the terminal becomes ssh's


@click.command("ssh-config")
def ssh_config() -> None:
    """Print a block for ~/.ssh/config: ssh VM.twin.

    With it ssh, scp, rsync and editors reach VM.twin and VM.NODE.twin.

    \b
    twinshare ssh-config >> ~/.ssh/config
    ssh web.twin
    scp -r site web.alice.twin:/srv
    """
    click.echo(f"Host *{DOMAIN}")
    for key, value in ssh_options(_proxy_command()):
        click.echo(f"    {key} {value}")


@click.command("ssh-proxy")
@click.argument("host")
@click.option("--user", default="root", help="Who logs in: this user's key is put into that one's authorized_keys.")
@peer_option
def ssh_proxy(host: str, user: str, peer: str | None) -> None:
    """Connect stdin and stdout with a VM's SSH server.

    It is the ProxyCommand of ssh-config.

    The guest's host keys are written down as the guest channel tells them, so that ssh never has to ask.
    """
    name, node = read_host(host)
    with guest_errors(), open_client() as client:
        vm, at = guest_of(client, name, peer or node)
        try:
            with boot_notice(vm, at):
                _authorize(client, vm, at, user)
            _pin_host_keys(host, vm, client.call("show_guest", {"vm": vm}, at))
            _carry(client, guest_path(vm, "/ssh", at))
        except (GuestUnreachable, GuestRefused) as error:
            HostKeys().accept(host, vm)
            _carry_by_address(client, vm, at, error)


def _pin_host_keys(host: str, vm: str, report: GuestReport) -> None:
    """Write down the keys that the channel tells; a guest that has none yet sends one through the channel."""
    if report.ssh and not report.host_keys:
        HostKeys().accept(host, vm, again=True)
    else:
        HostKeys().keep(host, vm, report.host_keys)


class NotInstalled(click.ClickException):
    exit_code = 3


def read_host(host: str) -> tuple[str, str | None]:
    """Return the VM and the node of `VM.twin` or `VM.NODE.twin`; another name is a VM's as it is."""
    if not host.endswith(DOMAIN):
        return host, None
    name, _, node = host.removesuffix(DOMAIN).partition(".")
    return name, node or None


def _proxy_command() -> str:
    program = shutil.which("twinshare")
    command = [program] if program else [sys.executable, "-m", "twinshare"]
    known = [f"{name}={os.environ[name]}" for name in ("TWINSHARE_API", "TWINSHARE_DATA_DIR") if name in os.environ]
    words = [*(["env", *known] if known else []), *command, "vm", "ssh-proxy", "--user", "%r", "%n"]
    return " ".join(subprocess.list2cmdline([word]) if " " in word else word for word in words)


def _authorize(client: NodeClient, vm: str, peer: str | None, user: str) -> None:
    """Put this user's key into the guest. Who may run commands there as root may log in."""
    request = ExecRequest(command=["sh", "-c", _AUTHORIZE], env={"KEY": user_key()}, user=user, timeout=30)
    done: ExecResult = client.call("exec_vm", {"vm": vm, "request": request}, peer)
    if done.exit_code != 0:
        say(f"the key could not be put into the guest: {done.stderr.strip() or done.exit_code}")


def _carry(client: NodeClient, path: str) -> None:
    from .session import SessionRun

    SessionRun(client, path, terminal=False, reads_input=True, resumable=False).run()


def _carry_by_address(client: NodeClient, vm: str, peer: str | None, why: TwinshareError) -> None:
    """Connect to port 22 of the VM's address: the way to a guest without a channel. Raises: `why`."""
    found = client.call("get_vm", {"vm": vm}, peer)
    if found.ip is None or 22 not in found.ports:
        raise why
    try:
        connection = socket.create_connection((found.ip, 22), timeout=20)
    except OSError as error:
        raise InvalidRequest(f"{found.ip} does not answer on port 22: {error.strerror or error}") from None
    with connection:
        _relay(connection)


def _relay(connection: socket.socket) -> None:
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        connection.settimeout(None)
        while True:
            for key, _ in selector.select():
                if key.fileobj is connection:
                    if not (data := connection.recv(1 << 16)):
                        return
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
                elif data := os.read(sys.stdin.fileno(), 1 << 16):
                    connection.sendall(data)
                else:
                    selector.unregister(sys.stdin.fileno())
                    connection.shutdown(socket.SHUT_WR)


def known_hosts() -> Path:
    return HostKeys().file
