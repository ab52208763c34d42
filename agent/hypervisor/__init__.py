"""Virtual machines on this machine: the port, its in-memory adapter, and the libvirt adapter."""
