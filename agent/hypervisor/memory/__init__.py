"""The hypervisor port in memory, with faults on demand."""

from .hypervisor import MemoryHypervisor, open_memory_hypervisor
from .record import Behaviour

__all__ = ["Behaviour", "MemoryHypervisor", "open_memory_hypervisor"]
