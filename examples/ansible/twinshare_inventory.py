#!/usr/bin/env python3
"""An Ansible inventory of the running VMs of a fleet.

    ansible-inventory -i examples/ansible/twinshare_inventory.py --list
    ansible all -i examples/ansible/twinshare_inventory.py -m ping

The connection is the system's ssh by the block that `twinshare ssh-config` prints, so a guest needs no network; see
README.md beside this file. The node is found as by the command line: $TWINSHARE_API and $TWINSHARE_TOKEN, or
http://localhost:8080. There is a group for each node (`node_NAME`), and one for each label (`label_KEY_VALUE`).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from twinshare.api.sync import RESTClient
from twinshare.protocols.errors import TwinshareError
from twinshare.protocols.vm import Vm


def group(*words: str) -> str:
    """Return words as a name that Ansible takes for a group."""
    return re.sub(r"[^A-Za-z0-9_]", "_", "_".join(words))


def variables(vm: Vm, here: str) -> dict[str, Any]:
    """Return what Ansible needs to reach a VM, and what is known of it. `here` is the name of the node asked."""
    host = f"{vm.name}.twin" if vm.node in {None, here} else f"{vm.name}.{vm.node}.twin"
    return {
        "ansible_host": host,
        "ansible_user": vm.labels.get("user", "root"),
        "twinshare_ip": vm.ip,
        "twinshare_node": vm.node,
        "twinshare_image": vm.image,
    }


def inventory(vms: Iterable[Vm], here: str) -> dict[str, Any]:
    """Return the inventory document of the VMs that run."""
    groups: dict[str, Any] = {"_meta": {"hostvars": {}}}
    for vm in vms:
        if vm.status != "running" or not vm.reachable:
            continue
        name = vm.name if vm.node in {None, here} else f"{vm.name}.{vm.node}"
        groups["_meta"]["hostvars"][name] = variables(vm, here)
        for one in [group("node", vm.node or here), *(group("label", k, v) for k, v in vm.labels.items())]:
            groups.setdefault(one, {"hosts": []})["hosts"].append(name)
    return groups


def main() -> int:
    url = os.environ.get("TWINSHARE_API", "http://localhost:8080")
    try:
        with RESTClient(url, os.environ.get("TWINSHARE_TOKEN")) as client:
            here = client.call("health").name
            found = inventory(client.list_fleet_vms(), here)
    except TwinshareError as error:
        print(f"twinshare: {error.message}", file=sys.stderr)
        return 1
    # `--host NAME` is never needed: the variables of all hosts are in `_meta`.
    print(json.dumps(found if "--host" not in sys.argv else {}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
