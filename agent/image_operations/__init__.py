"""The operations on images, one class in one file each, which join images and the VMs that stand on them.

Importing this registers them all.
"""

from . import build_tiny, capture, fsck, prune, pull, push, remove

__all__ = ["build_tiny", "capture", "fsck", "prune", "pull", "push", "remove"]
