"""Virtual machines on this machine: the port, its in-memory twin, and libvirt."""
