"""The dialect of Meda under `/api/v1`: its routes, bodies, sizes and code words, over the same operations.

`reference/meda-rest-api.md` is what a client of Meda was written against; docs/decisions says where we differ.
"""

from .routes import ROOT, describe, routes
from .words import render_error

__all__ = ["ROOT", "describe", "render_error", "routes"]
