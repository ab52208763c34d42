"""libvirt: the adapter, the only room that imports it."""

from .adapter import LibvirtHypervisor
from .opening import open_private, open_uri

__all__ = ["LibvirtHypervisor", "open_private", "open_uri"]
