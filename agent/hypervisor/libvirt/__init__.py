"""The hypervisor port on libvirt; the only package that imports it."""

from .adapter import LibvirtHypervisor
from .factory import open_libvirt_uri, open_private_libvirt

__all__ = ["LibvirtHypervisor", "open_libvirt_uri", "open_private_libvirt"]
