"""Find fields of value classes that are written and never read, or read and never set.

A field is an annotated name in the body of a dataclass, a NamedTuple or a pydantic model below
`operator/`. mypy knows the type of every expression, so a field `slots` of one class differs from
the `slots` of another. What only tests, benches or a generic encoder read counts as unread. The
other direction is for fields whose default says "not used" (None, False, empty, 0) and that no
constructor call, `replace` or assignment names, in tests neither.

`hack/unread_fields.allow` names what stays, one `module.Class.field: reason` a line; an entry that
is no longer needed is an error too. Ends with 1 and one line per finding.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from field_uses import Field, UseFinder, Uses, hashed
from mypy import build
from mypy.main import process_options

ROOT = Path(__file__).resolve().parent.parent
ALLOW = Path(__file__).with_suffix(".allow")
TESTS = ("tests", "benchmarks")
"""Folders whose code may set what the product leaves at its default."""
NOTHING = frozenset({"None", "False", "''", "()", "0", "0.0"})
"""Defaults that stand for "not used". Other defaults are constants with the fields' names."""


def declared(module: str, path: Path) -> Iterator[Field]:
    """Fields of the value classes in one file."""
    tree = ast.parse(path.read_text())
    for node, owner in _classes(tree, module):
        kind = _kind(node)
        if kind is None:
            continue
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            if "ClassVar" in ast.unparse(item.annotation) or item.target.id.startswith("__"):
                continue
            default = "" if item.value is None else ast.unparse(item.value)
            fixed = default in NOTHING and kind != "model"
            yield Field(owner, item.target.id, str(path), item.lineno, fixed, _ordered(node))


def _classes(tree: ast.AST, prefix: str) -> Iterator[tuple[ast.ClassDef, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            owner = f"{prefix}.{node.name}"
            yield node, owner
            yield from _classes(node, owner)


def _kind(node: ast.ClassDef) -> str | None:
    bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
    if "NamedTuple" in bases:
        return "tuple"
    if any(base.endswith("Model") for base in bases):
        return "model"
    decorators = {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}
    return "dataclass" if "dataclass" in decorators else None


def _ordered(node: ast.ClassDef) -> bool:
    return any("order=True" in ast.unparse(d) for d in node.decorator_list)


def set_by_words(paths: Iterable[Path]) -> set[str]:
    """Names that calls or assignments to attributes set in files whose types are not known."""
    found: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg is not None:
                found.add(node.arg)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Dict):
                found.update(_strings(node.keys))
    return found


def _strings(nodes_: Iterable[ast.expr | None]) -> Iterator[str]:
    for node in nodes_:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def set_in_annotations(path: Path, order: Mapping[str, Sequence[str]]) -> set[str]:
    """Fields of values that stand in annotations, where mypy keeps no expressions."""
    by_class = {owner.rpartition(".")[2]: owner for owner in order}
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        owner = by_class.get(node.func.id)
        if owner is not None:
            names = order[owner][: len(node.args)]
            found.update(f"{owner}.{name}" for name in names)
            found.update(f"{owner}.{k.arg}" for k in node.keywords)
    return found


def uses_of(config: Path, package: str) -> tuple[Uses, list[Field]]:
    """Uses and fields of all modules of `package`, checked as `config` says.

    Raises:
        SystemExit: mypy found errors; types are not to be relied on then.
    """
    sources, options = process_options(["--no-incremental", "--config-file", str(config)])
    options.export_types = options.preserve_asts = True
    options.incremental = False
    result = build.build(sources, options)
    if result.errors:
        raise SystemExit("\n".join(result.errors))
    uses, modules = Uses(), []
    for name, state in sorted(result.graph.items()):
        if state.tree is not None and state.path and name.split(".")[0] == package:
            modules.append((name, Path(state.path), state.tree))
    fields = [f for name, path, _ in modules for f in declared(name, path)]
    order: dict[str, list[str]] = {}
    for f in fields:
        order.setdefault(f.owner, []).append(f.name)
    for _, path, tree in modules:
        uses.written |= set_in_annotations(path, order)
        finder = UseFinder(result.types, uses, order)
        finder.walk(tree)
        finder.finish()
    for kind in result.types.values():
        uses.all_read.update(hashed(kind))
    return uses, fields


def findings(uses: Uses, fields: Iterable[Field], words: Collection[str] = ()) -> dict[str, str]:
    """What is wrong by full name of the field. `words`: names that are set elsewhere."""
    found = {}
    for f in sorted(fields):
        written = f.full_name in uses.written or f.owner in uses.all_set or not f.fixed
        written = written or f.name in words
        if not uses.reads(f):
            found[f.full_name] = f"{f.path}:{f.line}: {f.full_name} is never read"
        elif not written:
            found[f.full_name] = f"{f.path}:{f.line}: {f.full_name} is never set"
    return found


def allowed(text: str) -> dict[str, str]:
    """Reason by full name of the field."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): reason.strip() for name, _, reason in pairs}


def complaints(found: dict[str, str], allow: dict[str, str]) -> list[str]:
    """Findings that are not allowed, and entries without a reason or a finding."""
    lines = [line for name, line in found.items() if name not in allow]
    for name, reason in allow.items():
        if name not in found:
            lines.append(f"{ALLOW.name}: {name} is read and set now: remove the entry")
        elif not reason:
            lines.append(f"{ALLOW.name}: {name} has no reason")
    return lines


def main() -> int:
    """Check the product's package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "pyproject.toml")
    parser.add_argument("--package", default="pdserve")
    parser.add_argument("--allow", type=Path, default=ALLOW)
    args = parser.parse_args()
    uses, fields = uses_of(args.config, args.package)
    others = (p for folder in TESTS for p in (args.config.parent / folder).rglob("*.py"))
    found = findings(uses, fields, set_by_words(others))
    lines = complaints(found, allowed(args.allow.read_text()))
    print("\n".join(lines) or f"{len(fields)} fields: each is read and set")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
