"""Reads YAML from outside within bounds: depth, nodes after the expansion of aliases, and length of numbers.

libyaml's composer recurses on the C stack, so that 60 KB of `[` end the process, and a few aliases of aliases make a
document of billions of nodes. Its parser is flat: the events are counted first, and only a document within the bounds
is composed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaml import Event

MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_NUMBER = 256
"""Characters of a plain scalar that YAML 1.1 could read as a number: converting a long one takes quadratic time."""


class YamlError(ValueError):
    """The text is not YAML, or not within the bounds; the message is a sentence about it."""


def load_yaml(text: str) -> Any:
    """Return the document as plain values (`None` for an empty one).

    The library is loaded by the first call. Raises: YamlError.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        counter = _Counter()
        for event in yaml.parse(text, Loader=loader):
            counter.count(event)
        return yaml.load(text, Loader=loader)  # noqa: S506 - both are safe loaders
    except YamlError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlError(str(error).replace("\n", " ")[:200]) from None


class _Counter:
    """Counts one document's events. An alias counts as all the nodes that its anchor stands for."""

    def __init__(self) -> None:
        self._nodes = 0
        self._sizes: dict[str, int] = {}
        # Each collection that is open: its anchor, and how many nodes had been counted before it.
        self._open: list[tuple[str | None, int]] = []

    def count(self, event: Event) -> None:
        """Raises: YamlError."""
        from yaml import events

        if isinstance(event, events.CollectionStartEvent):
            self._add(1)
            self._open.append((event.anchor, self._nodes - 1))
            if len(self._open) > MAX_DEPTH:
                raise YamlError(f"it is nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, events.CollectionEndEvent):
            anchor, before = self._open.pop()
            if anchor is not None:
                self._sizes[anchor] = self._nodes - before
        elif isinstance(event, events.ScalarEvent):
            self._add(1)
            if event.anchor is not None:
                self._sizes[event.anchor] = 1
            if event.implicit[0] and len(event.value) > MAX_NUMBER and event.value[0] in "+-.0123456789":
                raise YamlError(f"a number has at most {MAX_NUMBER} digits; put text into quotes")
        elif isinstance(event, events.AliasEvent):
            if event.anchor not in self._sizes:
                raise YamlError(f"the alias '*{event.anchor}' names nothing that is complete before it")
            self._add(self._sizes[event.anchor])

    def _add(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise YamlError(f"it has more than {MAX_NODES} nodes, aliases expanded")
