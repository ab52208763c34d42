"""The twinshare dialect: `/api`, `/api/remote/<peer>`, the events, the consoles, and the pages."""

from .documents import describe
from .routes import root_body, routes

__all__ = ["describe", "root_body", "routes"]
