"""Code that nobody has read, run in a VM that is thrown away.

    python examples/agent_sandbox.py program.py [--image debian-12] [--on PEER]

Makes a VM on the network `isolated`, copies the program into it, runs it with a time limit, prints what it wrote and
returns its exit code. The VM has a `ttl`: should this program, or this machine, die, its node deletes it all the same.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from pathlib import Path

from twinshare.api.sync import RESTClient
from twinshare.protocols.errors import GuestUnreachable, TwinshareError
from twinshare.protocols.vm import VmSpec

TTL = 900
BOOT_WITHIN = 180.0
WHERE = "/tmp/program"  # noqa: S108 - a path in the guest, which nobody else has


def wait_for_guest(client: RESTClient, vm: str, peer: str | None) -> None:
    """Wait until the guest can be asked. Raises: GuestUnreachable when it does not boot in time."""
    give_up_at = time.monotonic() + BOOT_WITHIN
    while True:
        try:
            client.exec_vm(vm, ["true"], peer, timeout=30)
            return
        except GuestUnreachable:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(1)


def run_untrusted(client: RESTClient, program: bytes, image: str, peer: str | None = None, limit: int = 60) -> int:
    """Run a program in a VM of its own and return its exit code. Raises: TwinshareError."""
    spec = VmSpec(
        name=f"sandbox-{secrets.token_hex(4)}", image=image, cpu_cores=1, memory=256, disk_size=1,
        network="isolated", start=True, ttl=TTL, labels={"purpose": "sandbox"},
    )  # fmt: skip
    vm = client.call("create_vm", {"spec": spec}, peer)
    try:
        wait_for_guest(client, vm.id, peer)
        client.write_file(vm.id, WHERE, program, peer, mode=0o755)
        done = client.exec_vm(vm.id, [WHERE], peer, timeout=limit)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return 128 if done.exit_code is None else done.exit_code
    finally:
        client.call("delete_vm", {"vm": vm.id, "force": True}, peer)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("--image", default="tiny")
    parser.add_argument("--on", dest="peer")
    given = parser.parse_args()
    url = os.environ.get("TWINSHARE_API", "http://localhost:8080")
    try:
        with RESTClient(url, os.environ.get("TWINSHARE_TOKEN")) as client:
            return run_untrusted(client, given.program.read_bytes(), given.image, given.peer)
    except TwinshareError as error:
        print(f"twinshare: {error.message}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
