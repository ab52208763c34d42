"""Opens the hypervisor that a URI names: the private libvirtd, any other libvirt, or the one in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from ...protocols.errors import HypervisorDown
from .memory import Behaviour, open_memory_hypervisor
from .port import Hypervisor
from .sandbox.port import SandboxPort

_NO_BINDING = (
    "the Python module `libvirt` is missing; run: apt-get install --no-install-recommends"
    " gcc pkg-config libvirt-dev python3-dev, then: pip install libvirt-python"
)


@asynccontextmanager
async def open_hypervisor(
    uri: str = "",
    *,
    sandbox: SandboxPort | None = None,
    accelerator: Literal["auto", "kvm", "qemu"] = "auto",
    required: bool = True,
) -> AsyncIterator[Hypervisor]:
    """Open the hypervisor at `uri`; with an empty one a private libvirtd in `sandbox`.

    `fake://` is the one in memory, `fake:///path` keeps its domains in that file; `?shutdown_after=SECONDS|never`,
    `boots_in`, `delay` and `guest_program=1` set how it behaves. Unless `required`, a libvirt that cannot be reached
    yet is opened all the same: its calls raise HypervisorDown until it can.
    Raises: HypervisorDown, with what to install where something is missing; ValueError for a URI that means nothing.
    """
    if uri.startswith("fake:"):
        behaviour, path = parse_memory_uri(uri)
        kvm = "kvm" if accelerator == "kvm" else "qemu"
        async with open_memory_hypervisor(behaviour=behaviour, path=path, accelerator=kvm) as memory:
            yield memory
        return
    try:
        # Only here: an agent without libvirt starts all the same, and without the cost of loading it.
        from .libvirt import open_libvirt_uri, open_private_libvirt
    except ImportError as error:
        if not (error.name or "").startswith("libvirt"):
            raise
        raise HypervisorDown(_NO_BINDING) from error
    if uri:
        async with open_libvirt_uri(uri, accelerator=accelerator, required=required) as hypervisor:
            yield hypervisor
    elif sandbox is not None:
        async with open_private_libvirt(sandbox, accelerator=accelerator, required=required) as hypervisor:
            yield hypervisor
    else:
        raise ValueError("a private libvirtd needs a sandbox")


def parse_memory_uri(uri: str) -> tuple[Behaviour, Path | None]:
    """Parse a `fake:` URI. Raises: ValueError."""
    parts = urlsplit(uri)
    behaviour = Behaviour()
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in ("shutdown_after", "boots_in", "delay", "guest_program", "guest_agent"):
            raise ValueError(
                f"a fake hypervisor has no setting {key!r};"
                " it has shutdown_after, boots_in, delay, guest_program, guest_agent"
            )
        if key in ("guest_program", "guest_agent"):
            setattr(behaviour, key, value == "1")
        elif value == "never" and key != "delay":
            setattr(behaviour, key, None)
        else:
            setattr(behaviour, key, float(value))
    return behaviour, Path(unquote(parts.path)) if parts.path not in ("", "/") else None
