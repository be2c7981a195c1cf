"""Check what mypyc takes wrongly and mypy allows, in the modules that are compiled.

Local functions: compiled, each is a cycle with the variables of its function, and all that a
request held waits for the garbage collector. Two `except A as error` and `except B as error` of one
function: mypy sees two variables, mypyc one, of the first type, and raises TypeError where the
second comes. An await inside `except`, `finally` or `async with`: the exception that is being
handled becomes the whole thread's while the function waits (hack/compile.py). A field of a
NamedTuple or dataclass whose type is imported under TYPE_CHECKING: such annotations are looked at
when the module is imported, and a class that is not there yet ends the process.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hack.compile import SOURCES, modules


def main() -> int:
    """1 where a module has such a name."""
    found = [line for name in modules() for line in problems(name, (SOURCES / name).read_text())]
    for line in found:
        print(line)
    if not found:
        print(f"{len(modules())} compiled modules: as mypyc needs them")
    return 1 if found else 0


def problems(name: str, text: str) -> Iterator[str]:
    """Lines about one module."""
    module = ast.parse(text)
    yield from _absent_types(name, module)
    for node in ast.walk(module):
        if isinstance(node, ast.AsyncWith):
            yield f"operator/{name}:{node.lineno}: async with"
        if isinstance(node, ast.Try):
            handling = (n for part in (*node.handlers, *node.finalbody) for n in ast.walk(part))
            for waits in handling:
                if isinstance(waits, ast.Await):
                    yield f"operator/{name}:{waits.lineno}: await while an exception is handled"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ast.walk(node):
                if inner is not node and isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"operator/{name}:{inner.lineno}: {inner.name} is a local function"
            types: dict[str, str] = {}
            for handler in _handlers(node):
                if handler.name and handler.type:
                    kind = ast.unparse(handler.type)
                    if types.setdefault(handler.name, kind) != kind:
                        yield (
                            f"operator/{name}:{handler.lineno}: {node.name} has caught another "
                            f"type as {handler.name!r} before ({types[handler.name]}); compiled "
                            "code needs another name for it"
                        )


def _absent_types(name: str, module: ast.Module) -> Iterator[str]:
    """Fields whose types are imported for type checkers only, or found nowhere."""
    checking = (
        n for n in module.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    )
    absent = {
        alias.asname or alias.name
        for block in checking
        for found in block.body
        if isinstance(found, ast.ImportFrom)
        for alias in found.names
    }
    for node in module.body:
        if not isinstance(node, ast.ClassDef) or not (node.decorator_list or node.bases):
            continue
        # mypyc finds no module of it.
        unknown = (
            {"Exception"} if any("NamedTuple" in ast.unparse(b) for b in node.bases) else set()
        )
        for field in (f for f in node.body if isinstance(f, ast.AnnAssign)):
            names = {n.id for n in ast.walk(field.annotation) if isinstance(n, ast.Name)}
            for missing in sorted(names & (absent | unknown)):
                yield (
                    f"operator/{name}:{field.lineno}: {missing}, type of a field, is not there "
                    "when the module is imported"
                )


def _handlers(function: ast.AST) -> Iterator[ast.ExceptHandler]:
    """Those of a function itself, not of functions inside it."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.ExceptHandler):
            yield node
        yield from _handlers(node)


if __name__ == "__main__":
    sys.exit(main())
