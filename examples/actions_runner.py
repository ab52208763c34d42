"""One self-hosted GitHub Actions runner in a VM that is used for one job.

    GITHUB_TOKEN=… python examples/actions_runner.py OWNER/REPOSITORY [--image ubuntu-24.04] [--on PEER]

Asks GitHub for a just-in-time configuration, makes a VM with a `ttl`, starts the runner in it, and deletes the VM when
the job is done. Run it in a loop, or once for each webhook `workflow_job` that says `queued`. The image needs the
runner in /opt/actions-runner: capture one once with `twinshare image create`.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
import urllib.request

from twinshare.api.sync import RESTClient
from twinshare.protocols.errors import GuestUnreachable, TwinshareError
from twinshare.protocols.vm import VmSpec

GITHUB = "https://api.github.com"
RUNNER = "/opt/actions-runner/run.sh"
JOB_WITHIN = 6 * 3600
BOOT_WITHIN = 300.0


def jit_config(github: str, repository: str, name: str, token: str) -> str:
    """Return the configuration of a runner that takes one job. Raises: OSError."""
    body = {"name": name, "runner_group_id": 1, "labels": ["self-hosted", "twinshare"]}
    request = urllib.request.Request(  # noqa: S310 - the address is GitHub's, or of who calls this
        f"{github}/repos/{repository}/actions/runners/generate-jitconfig",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
        return str(json.load(answer)["encoded_jit_config"])


def run_job(client: RESTClient, github: str, repository: str, token: str, image: str, peer: str | None = None) -> int:
    """Run one job and return the runner's exit code. Raises: TwinshareError, OSError."""
    name = f"runner-{secrets.token_hex(4)}"
    spec = VmSpec(name=name, image=image, cpu_cores=2, memory=4096, disk_size=20, start=True, ttl=JOB_WITHIN + 900)
    vm = client.call("create_vm", {"spec": spec}, peer)
    try:
        wait_for_guest(client, vm.id, peer)
        config = jit_config(github, repository, name, token)
        begun = client.exec_vm(
            vm.id, ["sh", "-c", f'exec {RUNNER} --jitconfig "$CONFIG"'], peer,
            env={"CONFIG": config, "RUNNER_ALLOW_RUNASROOT": "1"}, timeout=JOB_WITHIN, detach=True,
        )  # fmt: skip
        return wait_for_end(client, vm.id, begun.session, peer)
    finally:
        client.call("delete_vm", {"vm": vm.id, "force": True}, peer)


def wait_for_guest(client: RESTClient, vm: str, peer: str | None) -> None:
    """Raises: GuestUnreachable when the guest does not boot in time."""
    give_up_at = time.monotonic() + BOOT_WITHIN
    while True:
        try:
            client.exec_vm(vm, ["true"], peer, timeout=30)
            return
        except GuestUnreachable:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(1)


def wait_for_end(client: RESTClient, vm: str, session: str, peer: str | None, pause: float = 2.0) -> int:
    """Return the exit code of a session when it has ended."""
    while True:
        found = client.call("get_session", {"vm": vm, "session": session}, peer)
        if found.state != "running":
            return 1 if found.exit_code is None else int(found.exit_code)
        time.sleep(pause)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("repository", metavar="OWNER/REPOSITORY")
    parser.add_argument("--image", default="ubuntu-24.04")
    parser.add_argument("--on", dest="peer")
    given = parser.parse_args()
    url = os.environ.get("TWINSHARE_API", "http://localhost:8080")
    try:
        with RESTClient(url, os.environ.get("TWINSHARE_TOKEN")) as client:
            return run_job(client, GITHUB, given.repository, os.environ["GITHUB_TOKEN"], given.image, given.peer)
    except (TwinshareError, OSError) as error:
        print(f"twinshare: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
