"""The hypervisor's twin in memory."""

from .hypervisor import FakeHypervisor, open_fake_hypervisor
from .record import Behaviour

__all__ = ["Behaviour", "FakeHypervisor", "open_fake_hypervisor"]
