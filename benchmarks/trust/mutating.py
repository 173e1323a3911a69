"""Small wrongs: which ones a source allows, and the source with one of them.

Comparisons, arithmetic, boolean words, numbers, truth values, `if` conditions, keyword values, slices' ends, calls left
out, returned values, and min/max, any/all and the like for each other. Annotations, docstrings and messages stay.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.MatMult: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_TWINS = {
    "min": "max", "max": "min", "any": "all", "all": "any", "amin": "amax", "amax": "amin", "sum": "mean",
    "mean": "sum", "maximum": "minimum", "minimum": "maximum", "clamp_min": "clamp_max", "zeros": "ones",
    "ones": "zeros", "zeros_like": "ones_like", "ones_like": "zeros_like", "floor": "ceil", "ceil": "floor",
    "isnan": "isinf", "isinf": "isnan", "issubset": "issuperset", "add": "discard", "append": "count",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One small wrong. `place`: the node among all of its file, in order; `variant`: which of the wrongs it allows.

    `at_import`: it is run while its module is imported, not when a function is called.
    """

    path: str
    line: int
    last: int
    place: int
    variant: int
    was: str
    becomes: str
    at_import: bool


def mutants_of(source: str, path: str) -> list[Mutant]:
    """Every small wrong of a source, in order."""
    tree = ast.parse(source)
    found, called, skipped = [], _called(tree), _skipped(tree)
    for place, node in enumerate(ast.walk(tree)):
        if node in skipped or not hasattr(node, "lineno"):
            continue
        for variant, change in enumerate(_changes(node)):
            changed = change(copy.deepcopy(node))
            was, becomes = (_words(n) for n in (node, changed))
            if was != becomes:
                found.append(Mutant(path, node.lineno, _last(node), place, variant, was, becomes, node not in called))
    return found


def with_mutant(source: str, mutant: Mutant) -> ast.Module:
    """The tree of a source with one wrong in it."""
    tree = ast.parse(source)
    target = next(node for place, node in enumerate(ast.walk(tree)) if place == mutant.place)
    changed = list(_changes(target))[mutant.variant](copy.deepcopy(target))

    class Put(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return changed if node is target else self.generic_visit(node)

    return ast.fix_missing_locations(Put().visit(tree))


Change = Callable[[ast.AST], ast.AST]


def _changes(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            for other in _COMPARE[type(operator)]:
                yield lambda n, i=i, other=other: _set(n, ops=[*n.ops[:i], other(), *n.ops[i + 1 :]])
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _ARITHMETIC:
        if not _is_text(node):
            yield lambda n: _set(n, op=_ARITHMETIC[type(n.op)]())
    elif isinstance(node, ast.BoolOp):
        yield lambda n: _set(n, op=ast.Or() if isinstance(n.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp):
        yield lambda n: n.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield lambda n: _set(n, value=not n.value)
        elif isinstance(node.value, (int, float)):
            yield lambda n: _set(n, value=n.value + 1)
            if node.value:
                yield lambda n: _set(n, value=-n.value)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        if isinstance(node, ast.While):
            return
        yield lambda n: _set(n, test=ast.UnaryOp(ast.Not(), n.test))
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _TWINS:
            yield lambda n, name=name: _renamed(n, _TWINS[name])
        if node.keywords and len(node.keywords) > 0 and not _is_text(node):
            yield lambda n: _set(n, keywords=n.keywords[:-1])
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield lambda n: ast.copy_location(ast.Pass(), n)
    elif isinstance(node, ast.Continue):
        yield lambda n: ast.copy_location(ast.Break(), n)
    elif isinstance(node, ast.Break):
        yield lambda n: ast.copy_location(ast.Continue(), n)


def _set(node: ast.AST, **fields: object) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _renamed(call: ast.Call, name: str) -> ast.Call:
    if isinstance(call.func, ast.Attribute):
        call.func.attr = name
    else:
        call.func = ast.copy_location(ast.Name(name, ast.Load()), call.func)
    return call


def _is_text(node: ast.AST) -> bool:
    return any(isinstance(part, (ast.JoinedStr, ast.Constant)) and _holds_text(part) for part in ast.walk(node))


def _holds_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _called(tree: ast.Module) -> set[ast.AST]:
    """What is within a function's body."""
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {part for function in functions for statement in function.body for part in ast.walk(statement)}


def _skipped(tree: ast.Module) -> set[ast.AST]:
    """What is within annotations, messages of errors, docstrings and imports, and what only a type checker reads."""
    out: set[ast.AST] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, (ast.AnnAssign, ast.arg)):
            parts.append(node.annotation)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parts += [node.returns, *node.decorator_list]
        elif isinstance(node, ast.ClassDef):
            parts += node.decorator_list
        elif isinstance(node, ast.Raise):
            parts.append(node.exc)
        elif isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            parts.append(node)
        for part in parts:
            if part is not None:
                out |= set(ast.walk(part))
    return out


def _last(node: ast.AST) -> int:
    """The last line that decides whether a test reaches it: of a condition, not of all that hangs on it."""
    if isinstance(node, ast.If):
        return node.test.end_lineno or node.lineno
    return getattr(node, "end_lineno", None) or node.lineno


def _words(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"[:100]
    return ast.unparse(ast.fix_missing_locations(node))[:100]
