"""Small changes to source code, one at a time, as a careless edit would make them.

A mutant is one change inside one function or at module level. What no test can or should hold is
left alone: docstrings and other text, annotations, decorators, `assert`, `raise`,
`if TYPE_CHECKING`, and `strict=True` of `zip`, which guards against mistakes only, as `assert`
does. `mutate` runs tests against them.
"""

from __future__ import annotations

import ast
import copy
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T", bound=ast.AST)

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}  # fmt: skip
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
_WIDTH = 120
"""Most characters of a change that its name shows."""
_SKIPPED = (ast.Assert, ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: in `path`, the node of this number in walking order becomes another."""

    path: str
    function: str
    """Qualified name of the outermost function around it; "" at module or class level."""
    line: int
    number: int
    variant: int
    before: str
    after: str
    turn: int = 1
    """Which one it is of those of its function that read alike."""

    @property
    def name(self) -> str:
        """The same while the code around its function changes."""
        again = f" ({self.turn})" if self.turn > 1 else ""
        return f"{self.path} {self.function or '-'}: {self.before} -> {self.after}{again}"


def mutants(path: str, source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    found = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for number, (node, function) in enumerate(_sites(ast.parse(source))):
        for variant, changed in enumerate(_variants(node)):
            before, after = _shown(ast.unparse(node), ast.unparse(changed))
            if before == after:
                continue
            key = (function, before, after)
            seen[key] += 1
            found.append(
                Mutant(path, function, node.lineno, number, variant, before, after, seen[key])
            )
    return found


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The module's tree with one change in it."""
    tree = ast.parse(source)
    node = next(n for k, (n, _) in enumerate(_sites(tree)) if k == mutant.number)
    changed = list(_variants(node))[mutant.variant]
    _Replace(node, ast.copy_location(changed, node)).visit(tree)
    return ast.fix_missing_locations(tree)


def drawn(by_path: dict[str, list[Mutant]], count: int, seed: int) -> list[Mutant]:
    """`count` mutants, or all there are: from each module its share, by chance within it.

    The same arguments give the same mutants in the same order.
    """
    total = sum(len(found) for found in by_path.values())
    count = min(count, total)
    shares = {path: count * len(found) / total for path, found in by_path.items() if found}
    taken = {path: int(share) for path, share in shares.items()}
    rest = sorted(shares, key=lambda path: (taken[path] - shares[path], path))
    for path in rest[: count - sum(taken.values())]:
        taken[path] += 1
    rng = random.Random(seed)
    return [m for path in sorted(taken) for m in rng.sample(by_path[path], taken[path])]


def _sites(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Nodes that may change, each with the outermost function around it."""
    yield from _below(tree.body, "", "")


def _below(
    body: Iterable[ast.AST], prefix: str, function: str
) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    for node in body:
        if isinstance(node, _SKIPPED) or _is_text(node) or _is_typing(node):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}".lstrip(".")
            if isinstance(node, ast.ClassDef):
                yield from _below(node.body, name, function)
            else:
                yield from _below(_defaults(node.args), name, function)
                yield from _below(node.body, name, function or name)
            continue
        if isinstance(node, ast.expr | ast.stmt):
            yield node, function
        yield from _below(_inside(node), prefix, function)


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.AnnAssign):
        yield from () if node.value is None else (node.value,)
    elif isinstance(node, ast.Lambda):
        yield from (*_defaults(node.args), node.body)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
        yield from (n for n in ast.iter_child_nodes(node) if not _is_guard(n))
    else:
        yield from ast.iter_child_nodes(node)


def _is_guard(node: ast.AST) -> bool:
    match node:
        case ast.keyword(arg="strict", value=ast.Constant(value=True)):
            return True
    return False


def _defaults(args: ast.arguments) -> list[ast.AST]:
    return [default for default in (*args.defaults, *args.kw_defaults) if default is not None]


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_typing(node: ast.AST) -> bool:
    """What only a type checker reads: aliases, `cast`'s first argument is harmless anyway."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    value = node.value if isinstance(node, ast.Assign) else None
    return isinstance(value, ast.Subscript) and ast.unparse(value.value) in ("Literal", "Callable")


def _variants(node: ast.expr | ast.stmt) -> Iterator[ast.expr | ast.stmt]:
    """What the node may become."""
    yield from _computations(node)
    match node:
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.Call():
            yield from _calls(node)
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.If():
            yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))


def _computations(node: ast.expr | ast.stmt) -> Iterator[ast.expr | ast.stmt]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in _COMPARED:
            yield _with(node, ops=[_COMPARED[type(op)]()])
        case ast.BinOp(op=op, left=left) if type(op) in _COMPUTED and not _is_string(left):
            yield _with(node, op=_COMPUTED[type(op)]())
        case ast.AugAssign(op=op) if type(op) in _COMPUTED:
            yield _with(node, op=_COMPUTED[type(op)]())
        case ast.BoolOp(op=op, values=values):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            for k in range(len(values)):
                rest = [v for i, v in enumerate(values) if i != k]
                yield rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)


def _calls(node: ast.Call) -> Iterator[ast.expr]:
    if isinstance(node.func, ast.Name) and node.func.id in _CALLED:
        kept = [k for k in node.keywords if k.arg != "key" and k.arg != "reverse"]
        other = _CALLED[node.func.id]
        keywords = kept if other == "list" else node.keywords
        yield _with(node, func=ast.Name(other, ast.Load()), keywords=keywords)
        if len(kept) < len(node.keywords):
            yield _with(node, keywords=kept)
    elif isinstance(node.func, ast.Name) and node.func.id == "replace" and len(node.keywords) > 1:
        for k in range(len(node.keywords)):
            yield _with(node, keywords=[x for i, x in enumerate(node.keywords) if i != k])


def _with(node: T, **fields: object) -> T:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _shown(before: str, after: str) -> tuple[str, str]:
    """Both in one line each, and at most `_WIDTH` characters of it around the first difference."""
    before, after = " ".join(before.split()), " ".join(after.split())
    pairs = enumerate(zip(before, after, strict=False))
    same = next((k for k, (a, b) in pairs if a != b), min(len(before), len(after)))
    start = 0 if same < _WIDTH else same - _WIDTH // 3
    return before[start : start + _WIDTH], after[start : start + _WIDTH]


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        """Put the new node where the old one is."""
        return self.new if node is self.old else super().visit(node)
