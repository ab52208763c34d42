"""Run the contract check on `qemu:///embed`: a process of its own, for libvirt takes one root per process.

Arguments: the folder for everything; the user to become (as root, the embedded libvirt wants a user of Debian's own).
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - now: later this process may not be able to read Python's own files
import os
import pwd
import sys
from pathlib import Path

import trio

from tests.agent.hypervisor.guests import PlanMaker
from twinshare.agent.hypervisor.contract import check_hypervisor
from twinshare.agent.hypervisor.libvirt import open_libvirt_uri


async def check(folder: Path) -> None:
    uri = f"qemu:///embed?root={folder / 'root'}"
    async with open_libvirt_uri(uri) as hypervisor:
        await check_hypervisor(hypervisor, PlanMaker(folder))
    async with open_libvirt_uri(uri) as hypervisor:  # the root may be opened again
        assert await hypervisor.list_domains() == []


if __name__ == "__main__":
    if len(sys.argv) > 2:
        account = pwd.getpwnam(sys.argv[2])
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        os.environ["HOME"] = sys.argv[1]
    trio.run(check, Path(sys.argv[1]))
