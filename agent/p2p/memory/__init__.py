"""The `Host` port in memory: many nodes in one process, on a network that can be slow, cut and partitioned."""

from .host import open_memory_host
from .network import MemoryNetwork

__all__ = ["MemoryNetwork", "open_memory_host"]
