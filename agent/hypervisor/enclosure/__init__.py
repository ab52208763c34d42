"""The enclosure of a node: where its private libvirtd, its QEMU processes and tools such as qemu-img live.

Inside are three folders of the data directory and no other file of the agent or of its owner; an unprivileged user
without any capability; a network of its own whose loopback is empty, so that a guest finds nothing of the host
on 10.0.2.2.
"""

from .line import Process
from .room import Enclosure, open_enclosure

__all__ = ["Enclosure", "Process", "open_enclosure"]
