"""A VM's whole life over the REST API.

    scripts/run                        in one terminal: a node
    twinshare image build-tiny         once: the image that this example starts from
    python examples/rest_api_usage.py [URL] [TOKEN]

The URL is http://localhost:8080 unless it is given or $TWINSHARE_API names another. On this machine, as the user that
runs the node, no token is needed. The same code runs under trio: replace `asyncio.run(main(…))` by `trio.run(main, …)`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress

from twinshare.api.rest_client import NodeUnreachable, RESTClient
from twinshare.protocols.errors import ImageNotFound, P2pStopped, TwinshareError, VmNotFound

NAME = "example-vm"


async def main(url: str, token: str | None) -> None:
    async with RESTClient(url, token) as client:
        health = await client.node().health()
        print(f"node {health.name}, version {health.version}, VMs run on {health.hypervisor}")

        # What a former run may have left behind.
        with suppress(VmNotFound):
            await client.delete_vm(NAME, force=True)

        vm = await client.create_vm(name=NAME, image="tiny", cpu_cores=1, memory=128, disk_size=1)
        print(f"created {vm.name} ({vm.id}), {vm.status}")

        await start_and_watch(client)
        await stop_and_delete(client)
        await look_at_peers(client)


async def start_and_watch(client: RESTClient) -> None:
    """Start the VM as an operation that goes on by itself, and hear what happens meanwhile."""
    async with client.events() as events:
        operation = await client.begin("start_vm", {"vm": NAME})
        async for event in events:
            print(f"  event {event.id}: {event.type} {event.data.get('name') or event.data.get('target', '')}")
            if event.type == "op.done" and event.data["id"] == operation.id:
                break
        vm = await client.wait(operation)
    print(f"started: {vm.status}, screen on 127.0.0.1:{vm.vnc_port}")

    for found in await client.list_vms():
        print(f"  {found.name}: {found.status}, {found.cpu_cores} CPU, {found.memory} MiB")
    found = await client.get_vm_status(NAME)
    print(f"up for {found.uptime} s")


async def stop_and_delete(client: RESTClient) -> None:
    stopped = await client.stop_vm(NAME, force=True)
    print(f"stopped: {stopped.status}")
    deleted = await client.delete_vm(NAME)
    print(f"deleted: {deleted.success}")


async def look_at_peers(client: RESTClient) -> None:
    """The fleet, where this node is part of one: the same calls work on any peer's VMs."""
    try:
        peers = await client.get_peers()
    except P2pStopped as error:
        print(f"no peers: {error}")
        return
    for peer in peers:
        vms = await client.list_remote_vms(peer.id) if peer.status == "online" else []
        print(f"peer {peer.name} is {peer.status}: {len(vms)} VMs")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    address = arguments[0] if arguments else os.environ.get("TWINSHARE_API", "http://localhost:8080")
    secret = arguments[1] if len(arguments) > 1 else os.environ.get("TWINSHARE_TOKEN")
    try:
        asyncio.run(main(address, secret))
    except NodeUnreachable as error:
        sys.exit(f"{error}; start one with scripts/run")
    except ImageNotFound:
        sys.exit("there is no image 'tiny' yet; make it with: twinshare image build-tiny")
    except TwinshareError as error:
        sys.exit(f"{error.code}: {error}")
