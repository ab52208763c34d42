"""The operations of a node by name, as this dialect calls them."""

from __future__ import annotations

from ...protocols.services import SERVICES
from ...protocols.table import all_methods

TABLE = all_methods(SERVICES)
