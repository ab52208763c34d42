"""Makes mutants: the text of a module with one thing changed inside one of its functions."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """One change: where, what stood there, what stands there now, and the whole text with it."""

    line: int
    before: str
    after: str
    text: str


def mutants(source: str) -> Iterator[Mutant]:
    """All changes of a module's functions that this module knows; annotations, docstrings and log lines stay."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    data = source.encode()
    for node, changed in _changes(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        before = data[start:end].decode()
        if changed != before:
            yield Mutant(node.lineno, before, changed, (data[:start] + changed.encode() + data[end:]).decode())


def _changes(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {id(node) for function in functions for node in ast.walk(function) if node is not function}
    for function in functions:
        if id(function) not in inner:
            for statement in function.body:
                yield from _of_statement(statement)


def _of_statement(node: ast.stmt) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    if isinstance(node, ast.Expr) and (isinstance(node.value, ast.Constant | ast.Yield) or _is_log(node.value)):
        return
    if isinstance(node, ast.Expr | ast.Raise | ast.AugAssign | ast.Delete | ast.Continue | ast.Break):
        yield node, "pass"
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield node, "return None"
    if isinstance(node, ast.With | ast.AsyncWith):
        stack = "AsyncExitStack" if isinstance(node, ast.AsyncWith) else "ExitStack"
        for item in node.items:
            if item.optional_vars is None:
                yield item.context_expr, f'__import__("contextlib").{stack}()'
    for field in ast.iter_child_nodes(node):
        if isinstance(field, ast.stmt):
            yield from _of_statement(field)
        elif isinstance(field, ast.ExceptHandler | ast.match_case):
            for statement in field.body:
                yield from _of_statement(statement)
        elif not (isinstance(node, ast.AnnAssign) and field is node.annotation):
            yield from _of_expressions(field)


def _of_expressions(top: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Changes of the expressions under a node that is no statement; messages of errors stay."""
    if isinstance(top, ast.expr):
        for changed in _of_expression(top):
            yield top, f"({ast.unparse(changed)})"
    if isinstance(top, ast.JoinedStr | ast.Lambda) or _is_log(top):
        return
    for below in ast.iter_child_nodes(top):
        yield from _of_expressions(below)


def _of_expression(node: ast.expr) -> Iterator[ast.expr]:
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[operator, *_]) if type(operator) in _COMPARISONS:
            new.ops[0] = _COMPARISONS[type(operator)]()
            yield new
        case ast.BoolOp():
            for number in range(len(new.values)):
                rest = [value for at, value in enumerate(new.values) if at != number]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(new.op, rest)
        case ast.UnaryOp(op=ast.Not()):
            yield new.operand
        case ast.BinOp() if type(new.op) in _OPERATORS:
            new.op = _OPERATORS[type(new.op)]()
            yield new
        case ast.IfExp():
            yield new.body
            yield new.orelse
        case ast.Constant(value=bool()):
            yield ast.Constant(not new.value)
        case ast.Constant(value=int() | float() as number):
            yield ast.Constant(number + 1)
        case ast.Name(id=name) if name in _NAMES:
            yield ast.Name(_NAMES[name])
        case _:
            return


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_log(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "log"
    )
