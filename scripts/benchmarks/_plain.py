"""The baseline: a plain QuartTrio route on stock Hypercorn that answers as many VMs by msgspec. Prints its port."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import msgspec
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response
from quart_trio import QuartTrio

from twinshare.protocols.bodies import VmList
from twinshare.protocols.vm import Vm, VmStatus

NOW = datetime.now(UTC)


def vm(number: int) -> Vm:
    return Vm(
        id=f"b9a3f2d4-5f5e-5c1a-9d0b-7a3f6c2e{number:04d}", name=f"vm-{number}", status=VmStatus.STOPPED, cpu_cores=1,
        memory=64, disk_size=1, hypervisor="kvm", network="default", vnc_port=None, created_at=NOW, image="blank",
        owner="local", node="node", observed_at=NOW,
    )  # fmt: skip


async def main(count: int) -> None:
    vms = [vm(number) for number in range(count)]
    app = QuartTrio(__name__)

    @app.get("/api/vm")
    async def list_vms() -> Response:
        return Response(msgspec.json.encode(VmList(vms=vms)), content_type="application/json")

    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.keep_alive_max_requests = 1_000_000
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(serve, app, config)
        print(urls[0].rpartition(":")[2], flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
