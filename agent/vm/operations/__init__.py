"""The operations on VMs: one class in one file each. Importing this registers them all."""

from . import (
    add_forward,
    create,
    delete,
    pause,
    remove_forward,
    restart,
    resume,
    start,
    stop,
    update,
)

__all__ = [
    "add_forward",
    "create",
    "delete",
    "pause",
    "remove_forward",
    "restart",
    "resume",
    "start",
    "stop",
    "update",
]
