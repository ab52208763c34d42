"""libvirt: the adapter, the only room that imports it."""
