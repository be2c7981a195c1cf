"""Find words in docs, docstrings and comments that name what does not exist.

Checked: file names (`nodes.py`, `docs/metrics.md`), dotted names of modules and what is in them
(`groups.health`, `wire.names.slot_name`), single names between backticks in docstrings, and
commands (`pdserve demo`, `make unit`, "the demo command"). A file may stand with its folder or
without; a name exists when any source, chart or table of this repository has it.

`hack/references.allow` names what exists elsewhere, one `word: reason` a line. Ends with 1 and one
line per finding.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOW = Path(__file__).with_suffix(".allow")
PACKAGES = frozenset({"pdserve", "localcluster"})
PROSE = ("operator/", "hack/")
"""Where docstrings and comments are read."""
FILE = re.compile(
    r"(?<![\w./*{<>$-])[\w./-]*\w\.(?:py|md|ya?ml|json|toml|html|svg|sh|txt)\b(?![*{</])"
)
TICKED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
DOTTED = re.compile(r"[a-z_]\w*(?:\.\w+)+")
NAME = re.compile(r"_?[a-z]\w*_\w+|[A-Z]+[a-z]\w*[A-Z]\w*")
"""A name that is no plain word: with an underscore, or in camel case."""
COMMAND = re.compile(
    r"(?:^|[\s/(])(kubectl pdserve|kubectl-pdserve|pdserve|make) ([a-z][a-z0-9_-]*)(?![\w/-])"
)
SAID = re.compile(r"\b([a-z]+) commands?\b")
WORDS = frozenset(
    [
        "a",
        "the",
        "this",
        "that",
        "its",
        "each",
        "every",
        "other",
        "two",
        "three",
        "one",
        "no",
        "any",
        "of",
        "by",
        "and",
        "or",
        "same",
        "next",
        "first",
        "last",
        "with",
        "whose",
        "what",
        "which",
        "such",
        "run",
        "shell",
        "long",
        "six",
        "per",
        "short",
        "wrong",
        "scale",
        "kubectl",
    ]
)
"""Before "command" they name none."""
ELSEWHERE = ("build/", "/", "report.")
"""What commands write, and what is no file of this repository."""


@dataclass
class Known:
    """All that exists in one tree."""

    files: list[str] = field(default_factory=list)
    modules: dict[str, set[str]] = field(default_factory=dict)
    """Names in each module, classes' attributes as `Class.attribute`."""
    names: set[str] = field(default_factory=set)
    pdserve: set[str] = field(default_factory=set)
    """Commands of `pdserve` and `kubectl pdserve`."""
    make: set[str] = field(default_factory=set)

    def file(self, name: str, near: str) -> bool:
        """Whether a file of that name, or path's end, exists."""
        name = name.removeprefix("./")
        while name.startswith("../"):
            name = name[3:]
        return any(f == name or f.endswith(f"/{name}") for f in self.files) or (
            f"{near}/{name}" in self.files
        )

    def lost(self, name: str, *, strict: bool) -> bool:
        """Whether it is meant as something in a module, and is not there.

        Elsewhere than in docstrings most dotted names are paths into objects: `strict` False.
        """
        parts = name.split(".")
        heads = [m for m in self.modules if m.split(".")[-1] == parts[0]]
        if not heads or not (strict or parts[0] in PACKAGES):
            return False
        for head in heads:
            module, rest = head, parts[1:]
            while rest and f"{module}.{rest[0]}" in self.modules:
                module, rest = f"{module}.{rest[0]}", rest[1:]
            if not rest or {".".join(rest[:2]), rest[0]} & self.modules[module]:
                return False
        # `status.fabric` may be a path although a module is named `status`.
        return parts[-1][0].isupper() or parts[0] in PACKAGES or parts[-1] not in self.names


def known(root: Path) -> Known:
    """Read a tree: tracked files, and those that are about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = Known([f for f in listed.stdout.splitlines() if (root / f).is_file()])
    for file in found.files:
        path = root / file
        if file.endswith(".py"):
            _add_module(found, file, path.read_text())
        elif path.suffix in (".yaml", ".yml", ".json", ".toml", ".tpl", ".html", ".sh", ".go"):
            found.names.update(re.findall(r"\w+", path.read_text(errors="ignore")))
        elif path.name in ("Makefile", "Dockerfile"):
            text = path.read_text()
            found.names.update(re.findall(r"\w+", text))
            found.make.update(re.findall(r"^([a-z][\w-]*)(?=[\w -]*:)", text, re.M))
    found.make.update(f"bench-{Path(f).stem}" for f in found.files if f.startswith("benchmarks/"))
    return found


def _add_module(found: Known, file: str, source: str) -> None:
    tree = ast.parse(source)
    names = found.modules.setdefault(_module(file), set())
    for node in tree.body:
        for name in _defined(node):
            names.add(name)
        if isinstance(node, ast.ClassDef):
            names.update(f"{node.name}.{n}" for item in node.body for n in _defined(item))
    texts = _texts(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                found.names.add(name)
            case ast.keyword(arg=str() as name) | ast.alias(name=name):
                found.names.update(name.split("."))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.names.add(node.name)
            case ast.Constant(value=str() as text) if id(node) not in texts:
                found.names.update(re.findall(r"\w+", text))
            case ast.Call(func=ast.Attribute(attr="add_parser"), args=[first, *_]):
                found.pdserve.update(_strings(first))
    found.names.update(_module(file).split("."))


def _texts(tree: ast.AST) -> set[int]:
    """Ids of the constants of a tree that are docstrings, of attributes too."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def _strings(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def _module(file: str) -> str:
    parts = file.removeprefix("operator/").removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _defined(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
        case ast.Assign(targets=targets):
            yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (n.asname or n.name for n in names)


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings and comments of a module, with the line of each."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            for k, line in enumerate(node.value.value.splitlines()):
                yield node.lineno + k, line
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and "noqa" not in token.string:
            yield token.start[0], token.string


def page(text: str) -> Iterator[tuple[int, str, bool]]:
    """Lines of a page, and whether each is code."""
    code = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            code = not code
        else:
            yield number, line, code or line.startswith("    ")


def wrong(line: str, near: str, there: Known, *, code: bool, strict: bool) -> Iterator[str]:
    """Words of one line that name nothing. `strict`: single names too."""
    for name in FILE.findall(line):
        placeholder = "NAME" in name or name.startswith(ELSEWHERE)
        if not placeholder and not there.file(name, near):
            yield name
    ticked = TICKED.findall(line)
    for text in ticked:
        if DOTTED.fullmatch(text) and not FILE.fullmatch(text):
            if there.lost(text, strict=strict):
                yield text
        elif strict and NAME.fullmatch(text) and text not in there.names:
            yield text
    for text in [line, *ticked] if code else ticked:
        for program, command in COMMAND.findall(text):
            if command not in (there.make if program == "make" else there.pdserve):
                yield f"{program} {command}"
    if not code:
        yield from (f"{w} command" for w in SAID.findall(line) if w not in WORDS | there.pdserve)


def findings(root: Path, there: Known) -> Iterator[tuple[str, str]]:
    """`path:line` and the word, for each word that names nothing."""
    for file in there.files:
        near = str(Path(file).parent)
        if file.endswith(".py") and file.startswith(PROSE):
            for number, line in prose((root / file).read_text()):
                for word in wrong(line, near, there, code=False, strict=True):
                    yield f"{file}:{number}", word
        elif file.endswith(".md") and not file.startswith("docs/reference/"):
            for number, line, code in page((root / file).read_text()):
                for word in wrong(line, near, there, code=code, strict=False):
                    yield f"{file}:{number}", word


def allowed(text: str) -> dict[str, str]:
    """Reason by word."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {word.strip(): why.strip() for word, _, why in (line.partition(": ") for line in lines)}


def complaints(found: Iterable[tuple[str, str]], allow: dict[str, str]) -> list[str]:
    """What is not allowed, and entries without a reason."""
    lines = [
        f"{where}: {word!r} names nothing that exists" for where, word in found if word not in allow
    ]
    return lines + [f"{ALLOW.name}: {word}: no reason" for word, why in allow.items() if not why]


def spare(found: Iterable[tuple[str, str]], allow: dict[str, str]) -> list[str]:
    """Entries that are not needed any more."""
    return sorted(allow.keys() - {word for _, word in found})


def main() -> int:
    """Check this repository."""
    there = known(ROOT)
    found, allow = list(findings(ROOT, there)), allowed(ALLOW.read_text())
    lines = complaints(found, allow)
    for word in spare(found, allow):
        print(f"note: {ALLOW.name}: {word} is not needed any more")
    print("\n".join(lines) or f"{len(there.files)} files: every name in them exists")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
