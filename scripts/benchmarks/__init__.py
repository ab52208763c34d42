"""One module per benchmark; `scripts/bench` finds them by name.

A benchmark is a module with `async def measure() -> list[Row]`. It measures its own baseline in the same run, because
only a ratio of the two means something on a shared machine. Its docstring's first line says what it measures.
"""

from scripts.benchmarks.rows import Row

__all__ = ["Row"]
