"""Checks that a public function names the exceptions that it raises where a reader looks for them.

    check_docstrings.py SOURCE [SOURCE ...]

What counts is `raise Name(...)` or `raise Name` in the body of a function or method whose own name
and whose classes' names are public, outside of functions and classes within it. `Name` must stand
in the section `Raises:` of the docstring. For `__init__` that of the class counts too. So must a
name that the docstring says anywhere else ("raises KubeError when ..."). Left alone:

- a `raise` in a `try` whose handler names the same exception: the caller never sees it;
- a variable (`raise error`), a bare `raise`, and the answer of a function (`raise refusal(...)`):
  no name of an exception stands there. A name of an exception begins with a capital letter;
- `NotImplementedError`: the method is abstract.

Exit codes: 0 nothing found, 1 one line per finding, 2 wrong usage.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
ABSTRACT = "NotImplementedError"
_ENTRY = re.compile(r"^ +([\w., ]+):", re.MULTILINE)
_PROSE = re.compile(r"\b[Rr]aises?\s+`?(?:\w+\.)*([A-Z]\w+)")
_SECTION = re.compile(r"^Raises:\n((?: .*\n|\n)*)", re.MULTILINE)


def documented(docstring: str) -> frozenset[str]:
    """Names of the exceptions in the section `Raises:` of a cleaned docstring."""
    section = _SECTION.search(f"{docstring}\n")
    entries = _ENTRY.findall(section[1]) if section else []
    return frozenset(name.rpartition(".")[2] for e in entries for name in e.split(", "))


def raised(function: Function) -> frozenset[str]:
    """Names of the exceptions that the body raises and does not catch."""
    return frozenset(_raised(function.body, frozenset()))


def _raised(body: list[ast.stmt], caught: frozenset[str]) -> Iterator[str]:
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                continue
            case ast.Raise(exc=ast.expr() as what):
                name = _name(what.func if isinstance(what, ast.Call) else what)
                if name[:1].isupper() and name != ABSTRACT and name not in caught:
                    yield name
            case ast.Try() | ast.TryStar():
                own = {name for handler in statement.handlers for name in _types(handler)}
                yield from _raised(statement.body, caught | own)
                for handler in statement.handlers:
                    yield from _raised(handler.body, caught)
                yield from _raised([*statement.orelse, *statement.finalbody], caught)
            case ast.Match(cases=cases):
                for case in cases:
                    yield from _raised(case.body, caught)
            case _:
                for field in ("body", "orelse"):
                    yield from _raised(getattr(statement, field, []), caught)


def _name(node: ast.expr) -> str:
    """The last part of a dotted name; empty where it is none."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _types(handler: ast.ExceptHandler) -> Iterator[str]:
    match handler.type:
        case ast.Tuple(elts=types):
            yield from map(_name, types)
        case ast.expr() as one:
            yield _name(one)


def functions(
    body: list[ast.stmt], owner: str = "", text: str = ""
) -> Iterator[tuple[str, Function, str]]:
    """Each public function of a module or class: qualified name, node, and docstring.

    `__init__` belongs to a public class, and has the docstring `text` of the class before its own.
    """
    for node in body:
        match node:
            case ast.ClassDef(name=name) if not name.startswith("_"):
                inner = ast.get_docstring(node) or ""
                yield from functions(node.body, f"{owner}{name}.", inner)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                own = ast.get_docstring(node) or ""
                if not name.startswith("_"):
                    yield f"{owner}{name}", node, own
                elif name == "__init__":
                    yield f"{owner}{name}", node, f"{text}\n\n{own}"


def findings(path: str, source: str) -> list[str]:
    """One line for each exception that a public function raises and does not name.

    Raises:
        SyntaxError: `source` is no Python module.
    """
    found = []
    for name, node, docstring in functions(ast.parse(source).body):
        said = _PROSE.findall(ast.get_docstring(node) or "")
        wanted = raised(node) | frozenset(said)
        missing = sorted(wanted - documented(docstring))
        found += [f"{path}:{node.lineno}: {name} raises {m}: name it in Raises:" for m in missing]
    return found


def main(arguments: list[str]) -> int:
    """Exit code; see the module."""
    folders = [Path(a) for a in arguments]
    if not folders or not all(f.is_dir() for f in folders):
        print("usage: check_docstrings.py SOURCE [SOURCE ...]", file=sys.stderr)
        return 2
    paths = sorted(p for folder in folders for p in folder.rglob("*.py"))
    found = [line for p in paths for line in findings(str(p), p.read_text(encoding="utf-8"))]
    print("\n".join(found) or f"{len(paths)} modules: public functions name what they raise")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
