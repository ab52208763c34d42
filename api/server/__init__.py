"""The REST server of a node: HTTP/1.1 by Hypercorn on trio, the operation table served as ASGI, pages by Quart-Trio."""

from .listen import CannotListen, Listening, listening
from .serve import open_api

__all__ = ["CannotListen", "Listening", "listening", "open_api"]
