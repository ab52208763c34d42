"""`scripts/bench`: runs the named benchmarks, or all; the table goes to stderr and the JSON to stdout."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

import trio

import scripts.benchmarks
from scripts.benchmarks.rows import Row, as_json, as_table

_NOT_BENCHMARKS = {"__main__", "rows"}


def names() -> list[str]:
    """The benchmarks there are; modules that start with an underscore serve the others."""
    found = {module.name for module in pkgutil.iter_modules(scripts.benchmarks.__path__)}
    return sorted(name for name in found - _NOT_BENCHMARKS if not name.startswith("_"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("name", nargs="*", help="the benchmarks to run; all without one")
    parser.add_argument("--list", action="store_true", help="name the benchmarks")
    options = parser.parse_args()
    if options.list:
        print(*names(), sep="\n")
        return 0
    if unknown := set(options.name) - set(names()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(names())}")
    results: dict[str, list[Row]] = {}
    for name in options.name or names():
        results[name] = trio.run(importlib.import_module(f"scripts.benchmarks.{name}").measure)
        print(f"\n{name}\n{as_table(results[name])}", file=sys.stderr)
    print(as_json(results).decode())
    return 0 if all(row.kept is not False for rows in results.values() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
