"""The node: what one machine does. trio in here; libvirt only in `hypervisor`, libp2p only in `p2p`."""
