"""Which view serves a request: routes compiled once, matched on the path as it came, segment by segment.

A segment is percent-decoded on its own, so that `%2F` stays inside the name it belongs to. Paths without a
placeholder win over paths with one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from ...protocols.errors import InvalidRequest, MethodNotAllowed, NotFound
from ...protocols.openapi import Endpoint
from .answer import Refuse, failure

if TYPE_CHECKING:
    from .answer import Answer
    from .request import Request

View = Callable[["Request"], Awaitable["Answer | None"]]

_PLACEHOLDER = re.compile(r"<(\w+)>")
MAX_PATH = 8192


@dataclass(frozen=True, slots=True)
class Route:
    """One verb on one path. `name` stands in metrics and logs; `told` is how the document describes it.

    A view returns its answer, or None when it has sent it itself; `refuse` tells the errors that it raises.
    `open` routes need no caller; `websocket` routes serve websockets.
    """

    verb: str
    path: str
    name: str
    view: View
    told: Endpoint | None = None
    open: bool = False
    websocket: bool = False
    refuse: Refuse = failure


class _Pattern:
    """A path with placeholders: what each segment must be, and the routes by verb."""

    __slots__ = ("literals", "names", "routes")

    def __init__(self, path: str) -> None:
        segments = path[1:].split("/")
        self.literals = [(at, part.encode()) for at, part in enumerate(segments) if not _PLACEHOLDER.fullmatch(part)]
        self.names = [(at, part[1:-1]) for at, part in enumerate(segments) if _PLACEHOLDER.fullmatch(part)]
        self.routes: dict[str, Route] = {}

    def fits(self, segments: list[bytes]) -> bool:
        for at, part in self.literals:  # a request asks many patterns, and most differ in the first
            if segments[at] != part:
                return False
        return all(segments[at] for at, _ in self.names)

    def values(self, segments: list[bytes]) -> dict[str, str]:
        return {name: _decode(segments[at]) for at, name in self.names}


def _decode(segment: bytes) -> str:
    try:
        return unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("the path is not UTF-8", path="path") from None


class Router:
    """All routes of the server. `dialects` tell, below a path, the errors that come before a route is found."""

    def __init__(self, routes: Iterable[Route], dialects: Mapping[bytes, Refuse] | None = None) -> None:
        self.routes = tuple(routes)
        self._dialects = dialects or {}
        self._plain: dict[bytes, dict[str, Route]] = defaultdict(dict)
        self._patterns: dict[int, list[_Pattern]] = defaultdict(list)
        made: dict[str, _Pattern] = {}
        for route in self.routes:
            if not _PLACEHOLDER.search(route.path):
                table = self._plain[route.path.encode()]
            else:
                pattern = made.get(route.path)
                if pattern is None:
                    pattern = made[route.path] = _Pattern(route.path)
                    self._patterns[route.path.count("/")].append(pattern)
                table = pattern.routes
            if route.verb in table:
                raise ValueError(f"{route.verb} {route.path} is served twice")
            table[route.verb] = route
        for patterns in self._patterns.values():
            patterns.sort(key=lambda pattern: -len(pattern.literals))

    def match(self, verb: str, raw_path: bytes) -> tuple[Route, dict[str, str]]:
        """The route and the values of its placeholders.

        Raises: NotFound, MethodNotAllowed with the verbs that are `allow`ed there, InvalidRequest.
        """
        plain = self._plain.get(raw_path)
        if plain is not None and (route := plain.get(verb)) is not None:
            return route, {}
        if len(raw_path) > MAX_PATH or not raw_path.startswith(b"/"):
            raise InvalidRequest("the request target must be a path of at most 8192 bytes", path="path")
        segments = raw_path[1:].split(b"/")
        fitting = [one for one in self._patterns.get(len(segments), ()) if one.fits(segments)]
        for pattern in fitting:
            if (route := pattern.routes.get(verb)) is not None:
                return route, pattern.values(segments)
        allowed = {*(plain or ()), *(served for one in fitting for served in one.routes)}
        shown = raw_path.decode("ascii", "replace")
        if not allowed:
            raise NotFound(f"there is nothing at {shown}")
        raise MethodNotAllowed(f"{verb} is not served at {shown}", allow=_all_verbs(allowed))

    def refuse(self, raw_path: bytes) -> Refuse:
        """How errors are told at a path, whatever is there."""
        return next((told for root, told in self._dialects.items() if raw_path.startswith(root + b"/")), failure)

    def allowed(self, raw_path: bytes) -> list[str]:
        """The verbs that a path is served with. Raises: NotFound, InvalidRequest."""
        try:
            self.match("OPTIONS", raw_path)
        except MethodNotAllowed as error:
            return list(error.details["allow"])
        raise AssertionError("no route serves OPTIONS")


def _all_verbs(served: set[str]) -> list[str]:
    return sorted(served | {"OPTIONS"} | ({"HEAD"} if "GET" in served else set()))
