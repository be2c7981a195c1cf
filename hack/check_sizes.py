"""Checks that modules and functions stay small and values typed.

    check_sizes.py [ROOT]

Looked at are `operator/`, `benchmarks/` and `hack/` below ROOT (default: this repository):

- no module above `FILE` lines, no function above `FUNCTION`, and nine of ten functions of at most
  `MOST_FUNCTIONS` lines, decorators and docstring included;
- in `operator/`, at most `UNTYPED` lines that use `Any` (imports not counted). The names of raw
  JSON (`JsonMap`, `JsonObject`, `Object`) stand for it where objects are read or written: the
  figures say in how many lines;
- every `type: ignore` says why: behind it, or in a comment on the line above.

Prints a line per finding, then the figures. Exit codes: 0 nothing found, 1 something found.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

FILE, FUNCTION, MOST_FUNCTIONS, UNTYPED = 400, 60, 25, 80
"""Lines."""
FOLDERS = ("operator", "benchmarks", "hack")
TYPED = "operator"
RAW = frozenset({"JsonMap", "JsonObject", "Object"})
_IGNORE = re.compile(r"# type: ignore\[[^]]*\](.*)")


def functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Name, first line and number of lines of each function, inner ones too.

    Raises:
        SyntaxError: `source` is no Python module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            yield node.name, first, (node.end_lineno or first) - first + 1


def lines_using(source: str, names: frozenset[str]) -> int:
    """How many lines of a module use one of the names."""
    nodes = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name))
    return len({node.lineno for node in nodes if node.id in names})


def without_reason(source: str) -> Iterator[int]:
    """Lines of `type: ignore` that do not say why."""
    lines = source.splitlines()
    for number, line in enumerate(lines, 1):
        found = _IGNORE.search(line)
        above = lines[number - 2].strip() if number > 1 else ""
        if found and not found[1].strip().startswith("#") and not above.startswith("#"):
            yield number


def ninth_of_ten(lengths: Sequence[int]) -> int:
    """The least length that nine of ten do not pass; 0 without any."""
    return sorted(lengths)[-(-9 * len(lengths) // 10) - 1] if lengths else 0


def findings(sources: dict[str, str]) -> tuple[list[str], str]:
    """What is too big, a line each, and the figures. `sources`: text by path below the root."""
    found: list[str] = []
    lengths: list[int] = []
    longest = untyped = raw = 0
    for path, source in sorted(sources.items()):
        lines = source.count("\n")
        longest = max(longest, lines)
        if lines > FILE:
            found.append(f"{path}: {lines} lines, at most {FILE}")
        for name, first, length in functions(source):
            lengths.append(length)
            if length > FUNCTION:
                found.append(f"{path}:{first}: {name} has {length} lines, at most {FUNCTION}")
        bare = without_reason(source)
        found += [f"{path}:{number}: type: ignore without its reason" for number in bare]
        if path.startswith(f"{TYPED}/"):
            untyped += lines_using(source, frozenset({"Any"}))
            raw += lines_using(source, RAW)
    most = ninth_of_ten(lengths)
    if most > MOST_FUNCTIONS:
        found.append(
            f"one function of ten is above {MOST_FUNCTIONS} lines: nine of ten have up to {most}"
        )
    if untyped > UNTYPED:
        found.append(f"{untyped} lines of {TYPED} use Any, at most {UNTYPED}")
    figures = (
        f"longest module {longest} lines, longest function {max(lengths, default=0)}, "
        f"nine of ten functions at most {most}, Any in {untyped} lines, raw JSON in {raw}"
    )
    return found, figures


def main(arguments: Sequence[str]) -> int:
    """Exit code; see the module."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    paths = (p for folder in FOLDERS for p in (root / folder).rglob("*.py"))
    sources = {str(p.relative_to(root)): p.read_text(encoding="utf-8") for p in paths}
    found, figures = findings(sources)
    print("\n".join([*found, figures]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
