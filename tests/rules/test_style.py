"""The house style that no linter knows: docstrings, lengths, broad excepts, sleeps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from tests.rules.tree import ROOMS, modules

MAX_LINES = 400
MAX_FUNCTION = 60

# Where an unexpected exception may be caught, and why. Everywhere else a bug must reach its nursery.
BORDERS = {
    "agent/journal/execution.py": "the operation runner: a bug in one operation is recorded in its row",
    "agent/p2p/rpc.py": "the RPC dispatch: a bug in one call is answered `internal`",
    "api/server/connection.py": "whatever a stranger's bytes do to the parser ends their connection and nothing else",
    "agent/p2p/memory/host.py": "what a stream's handler raises is logged and ends that stream alone, as the port says",
    "agent/p2p/libp2p/serving.py": "any exception in a stream handler would end the whole libp2p host",
    "agent/p2p/libp2p/handshake.py": "hostile bytes reach libraries that raise whatever they please",
    "agent/background.py": "keeps the body's error until its nursery is closed, then raises it",
    "api/websocket_writer.py": "the same under anyio, for the Python client",
}


def test_every_module_says_its_rule() -> None:
    silent = [path for path, tree, _ in modules(*ROOMS, "tests", "scripts", "examples") if not ast.get_docstring(tree)]
    assert not [path for path in silent if not path.endswith("__init__.py") or path.split("/")[0] in ROOMS]


def test_no_file_is_too_long() -> None:
    lengths = {path: text.count("\n") for path, _, text in modules(*ROOMS, "tests", "scripts", "examples")}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


def test_no_function_is_too_long() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree, _ in modules(*ROOMS)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= MAX_FUNCTION
    ]
    assert not long


# Where a test lets time pass, and why nothing else would do.
SLEEPERS = {"tests/agent/lives.py": "kills at a random instant: the time is what is tried"}


def test_tests_wait_for_conditions_and_never_sleep_a_thread() -> None:
    sleeps = [
        f"{path}:{node.lineno}"
        for path, tree, _ in modules("tests")
        for node in ast.walk(tree)
        if path not in SLEEPERS and isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep"
    ]
    assert not sleeps


# The codes, a dash, and why; of types the codes in brackets, and why in a comment of its own.
SILENCED = re.compile(r"# (?:noqa|(?:type|pyright): ignore)\b")
REASONED = re.compile(r"# (?:noqa: [A-Z0-9, ]+ - |(?:type|pyright): ignore\[[\w,-]+\](?:  #| -) )\w")


def test_who_silences_a_checker_says_why() -> None:
    silent = [
        f"{path}:{number}"
        for path, _, text in modules(*ROOMS, "tests", "scripts", "examples")
        for number, line in enumerate(text.splitlines(), 1)
        if SILENCED.search(line) and not REASONED.search(line)
    ]
    assert not silent


def test_broad_excepts_stand_at_the_borders_only() -> None:
    found = {
        f"{path}:{handler.lineno}"
        for path, tree, _ in modules(*ROOMS)
        if path not in BORDERS
        for handler in broad_handlers(tree)
    }
    assert not found


def test_a_broad_except_is_recognised() -> None:
    catching = "try:\n    f()\nexcept {}:\n    {}"
    for kind in ("Exception", "BaseException", "(ValueError, Exception)", ""):
        assert list(broad_handlers(ast.parse(catching.format(kind, "pass"))))
    assert not list(broad_handlers(ast.parse(catching.format("ValueError", "pass"))))
    assert not list(broad_handlers(ast.parse(catching.format("BaseException", "undo()\n    raise"))))


def broad_handlers(tree: ast.Module) -> Iterator[ast.ExceptHandler]:
    """Handlers that swallow any exception; one that cleans up and raises again swallows nothing."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {ast.unparse(kind) if kind else "BaseException" for kind in caught}
        last = node.body[-1]
        raises_again = isinstance(last, ast.Raise) and last.exc is None
        if names & {"Exception", "BaseException"} and not raises_again:
            yield node


MAX_PARAMETERS = 6
"""Of a function, `self` not counted. More belong into a record: a frozen dataclass or a Struct."""
# Parameters that are fields of something else: of a REST request and of a peer's, or flags of the command line.
_FIELDS = re.compile(r"rest\(|click\.|.*\b(group|command|option|argument)\(")


def test_no_function_has_too_many_parameters() -> None:
    assert _many_parameters(modules(*ROOMS)) == []


def test_each_way_of_taking_many_parameters_is_found() -> None:
    many = "a, b, c, d"
    lines = [
        f"def f({many}, e, f, g): ...",
        f"async def f({many}, *, e, f, g): ...",
        f"def f({many}, /, *e, f, **g): ...",
        f"class C:\n    def f(self, {many}, e, f, g=1): ...",
    ]
    for text in lines:
        assert len(_many_parameters([("a.py", ast.parse(text), text)])) == 1, text
    for text in (
        f"def f({many}, e, f): ...",
        f"class C:\n    @rest('GET', '/')\n    def f(self, {many}, e, f, g): ...",
    ):
        assert _many_parameters([("a.py", ast.parse(text), text)]) == [], text


def _many_parameters(found: Iterable[tuple[str, ast.Module, str]]) -> list[str]:
    return [
        f"{path}:{node.lineno} {node.name}"
        for path, tree, _ in found
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and len(_parameters(node.args)) > MAX_PARAMETERS
        and not any(_FIELDS.match(ast.unparse(one)) for one in node.decorator_list)
    ]


def _parameters(args: ast.arguments) -> list[str]:
    rest = [one for one in (args.vararg, args.kwarg) if one is not None]
    names = [one.arg for one in (*args.posonlyargs, *args.args, *args.kwonlyargs, *rest)]
    return [name for name in names if name not in {"self", "cls"}]
