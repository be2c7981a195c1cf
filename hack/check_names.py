"""Checks that every public class below a source root has a name of its own.

A name that stands for two things sends a reader to the imports to learn which is meant. It counts
classes at the top level of a module whose names do not begin with an underscore. Prints each name
that stands twice, with its places.

    check_names.py operator

Exit codes: 0 every name stands once, 1 one stands twice, 2 wrong usage.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path


def public_classes(source: str) -> Iterator[tuple[str, int]]:
    """Name and line of each public class at the top level of a module.

    Raises:
        SyntaxError: `source` is no Python module.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node.lineno


def shared_names(files: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names that stand twice or more, sorted, with `path:line` of each place.

    `files`: path and text of each module.
    """
    places: dict[str, list[str]] = {}
    for path, source in files:
        for name, line in public_classes(source):
            places.setdefault(name, []).append(f"{path}:{line}")
    return {name: places[name] for name in sorted(places) if len(places[name]) > 1}


def main(arguments: list[str]) -> int:
    """Exit code; see the module."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: check_names.py SOURCE_ROOT", file=sys.stderr)
        return 2
    files = sorted(Path(arguments[0]).rglob("*.py"))
    shared = shared_names((str(f), f.read_text(encoding="utf-8")) for f in files)
    for name, places in shared.items():
        print(f"class {name} stands {len(places)} times: {', '.join(places)}")
    if shared:
        print("give each class a name that tells it from the others (docs/contributing.md)")
    return 1 if shared else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
