"""Every operation that this node's journal keeps. A journalled method without its class is a TypeError, at import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..protocols.services import SERVICES
from . import image_operations
from .image_operations.context import ImageContext, ImageOperation
from .journal.operation import JournalledOperation, bind_operations, require_complete
from .reach import operations as tunnel_operations
from .reach.operations.base import TunnelOperation
from .reach.tunnels import Tunnels
from .vm import operations as vm_operations
from .vm.context import VmContext
from .vm.operations.base import VmOperation

ROOMS = (vm_operations, image_operations, tunnel_operations)
OPERATIONS = require_complete(SERVICES)


def open_operations(vms: VmContext, images: ImageContext, tunnels: Tunnels) -> Sequence[JournalledOperation[Any]]:
    """Each operation with the services that it works with."""
    return [
        *bind_operations(VmOperation, vms),
        *bind_operations(ImageOperation, images),
        *bind_operations(TunnelOperation, tunnels),
    ]
