"""libp2p without what we do not use of it.

`import libp2p` runs package initialisers that load QUIC, TLS, ACME, DNS and metrics: 1.1 s and 58 MB, half of what an
agent may take. The modules that we build on need 0.2 s and 15 MB. While ours are imported, empty packages stand in for
those initialisers; afterwards all is put aside, so that who imports libp2p in the same process gets the whole of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Final

STUBBED_PACKAGES: Final = (
    "",
    ".transport",
    ".transport.quic",
    ".security",
    ".pubsub",
    ".identity",
    ".identity.identify",
    ".relay",
    ".relay.circuit_v2",
    ".kad_dht",
)
_kept: dict[str, ModuleType] = {}
_lock = Lock()


@contextmanager
def minimal_libp2p() -> Iterator[None]:
    """Import what needs libp2p inside. It changes nothing when the whole of libp2p is loaded already."""
    with _lock:
        if "libp2p" in sys.modules:
            yield
            return
        sys.modules.update(_kept or _stand_ins())
        try:
            yield
        finally:
            for name in [name for name in sys.modules if name == "libp2p" or name.startswith("libp2p.")]:
                _kept[name] = sys.modules.pop(name)


def _stand_ins() -> dict[str, ModuleType]:
    spec = find_spec("libp2p")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("libp2p is not installed; run scripts/setup")
    top = Path(spec.submodule_search_locations[0])
    modules = {}
    for suffix in STUBBED_PACKAGES:
        name = f"libp2p{suffix}"
        modules[name] = ModuleType(name, "Stands in for the package's initialiser.")
        modules[name].__path__ = [str(top.joinpath(*suffix.split(".")))]
    # libp2p.custom_types names one class of the QUIC transport, for a type that we do not use.
    quic = ModuleType("libp2p.transport.quic.stream", "Stands in for the QUIC transport.")
    quic.__dict__["QUICStream"] = type("QUICStream", (), {})
    modules[quic.__name__] = quic
    return modules
