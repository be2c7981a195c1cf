"""Checks of the tests: no module is longer than a reader reads, and none touches private names.

A private name begins with one underscore. What counts is a name that the product, its scripts or
its benchmarks define, touched from another module: `obj._name`, `from pdserve.x import _name`, and
the strings of `setattr` and `getattr`. A test that needs one holds the code and not what it does;
what deserves a test of its own deserves a public name. Members of the touching module's own
classes are its own, and so are those that a test's class inherits from another test's.

    check_tests.py TESTS SOURCE [SOURCE ...]

Exit codes: 0 nothing found, 1 one line per finding, 2 wrong usage.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

MOST_LINES = 350
DOCUMENTED = frozenset({"_asdict", "_fields", "_make", "_replace"})
"""Public in spite of their form: methods of named tuples."""
BY_NAME = frozenset({"setattr", "delattr", "getattr", "hasattr", "attrgetter", "patch", "object"})
"""Calls that take the name of an attribute as a string: of Python, pytest and unittest.mock."""


def is_private(name: str) -> bool:
    """Whether the name begins with one underscore, and is more than that."""
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


def private_names(source: str) -> Iterator[str]:
    """Private names that a module defines: its own, and those of its classes and their objects.

    Raises:
        SyntaxError: `source` is no Python module.
    """
    tree = ast.parse(source)
    yield from _defined(tree)
    yield from members(tree)


def members(tree: ast.Module) -> Iterator[str]:
    """Private names of the classes of a module, and of their objects."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef():
                yield from _defined(node)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                if is_private(name):
                    yield name


def _defined(owner: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Private names that the body of a module or class defines itself."""
    for node in owner.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found = [name]
            case ast.ClassDef(name=name):
                found = [name]
            case ast.Assign() | ast.AnnAssign():
                found = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
            case _:
                continue
        yield from (name for name in found if is_private(name) and name not in DOCUMENTED)


def touched(source: str, names: frozenset[str], tests: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Line and text of each place that touches one of the private `names`.

    `tests`: private names that any test defines, which a test's class may have inherited.
    """
    tree = ast.parse(source)
    own = frozenset(members(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                if name in names - tests - own:
                    yield node.lineno, ast.unparse(node)
            case ast.Attribute(attr=name):
                if name in names - own:
                    yield node.lineno, ast.unparse(node)
            case ast.ImportFrom(module=str(module), names=imported):
                for alias in imported:
                    if alias.name in names:
                        yield node.lineno, f"from {module} import {alias.name}"
            case ast.Call(args=arguments) if _called(node) in BY_NAME:
                for text in _texts(arguments):
                    if text.rpartition(".")[2] in names - own:
                        yield node.lineno, f"{_called(node)} of {text!r}"


def _called(call: ast.Call) -> str:
    """The last part of a called name; empty where it has none."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _texts(arguments: Iterable[ast.expr]) -> Iterator[str]:
    for each in arguments:
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def findings(tests: Mapping[str, str], sources: Iterable[str]) -> list[str]:
    """What is wrong, by path and line. `tests`: text by path; `sources`: texts of the product."""
    names = frozenset(name for source in sources for name in private_names(source))
    defined = frozenset(name for source in tests.values() for name in private_names(source))
    found = []
    for path, source in sorted(tests.items()):
        lines = source.count("\n")
        if lines > MOST_LINES:
            found.append(f"{path}: {lines} lines, more than {MOST_LINES}: split it by behaviour")
        for line, what in sorted(touched(source, names, defined)):
            found.append(f"{path}:{line}: {what} is private")
    return found


def main(arguments: list[str]) -> int:
    """Exit code; see the module."""
    folders = [Path(a) for a in arguments]
    if len(folders) < 2 or not all(f.is_dir() for f in folders):
        print("usage: check_tests.py TESTS SOURCE [SOURCE ...]", file=sys.stderr)
        return 2
    tests, *sources = folders
    texts = {str(p): p.read_text(encoding="utf-8") for p in tests.rglob("*.py")}
    others = (p.read_text(encoding="utf-8") for f in sources for p in f.rglob("*.py"))
    found = findings(texts, others)
    print("\n".join(found) or f"{len(texts)} modules of tests: short, and no private name touched")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
