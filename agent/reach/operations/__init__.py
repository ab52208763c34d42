"""The operations on tunnels to peers' VMs: one class in one file each. Importing this registers them."""

from . import add_tunnel, remove_tunnel

__all__ = ["add_tunnel", "remove_tunnel"]
