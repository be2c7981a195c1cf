"""No code outside the folder of an engine type, and that engine's own program, names the type."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import pdserve
from pdserve.engines import registry
from pdserve.wire import metrics

SOURCE = Path(pdserve.__file__).parent
OWN = (
    *(f"engines/{name}/" for name in ("mindie", "reference", "sglang", "vllm", "vllm_ascend")),
    "refengine/",
)
SIMULATED = ("dst/",)
"""Worlds whose services have to be of some type."""
CODE = [
    path
    for path in sorted(SOURCE.rglob("*.py"))
    if not str(path.relative_to(SOURCE)).startswith((*OWN, *SIMULATED))
]


def named(path: Path) -> set[str]:
    """Words of text constants (not docstrings) and modules that are imported."""
    tree = ast.parse(path.read_text())
    texts = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            found |= set(re.findall(r"[A-Za-z0-9-]+", node.value))
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_type_is_named(path: Path) -> None:
    found = named(path)
    assert not found & {*registry.known(), "vllm", "sglang", "mindie"}
    assert not [word for word in found if word.startswith("pdserve.engines.reference")]


def test_the_walk_sees_what_it_looks_for() -> None:
    """Or it would find nothing because it looks at nothing."""
    assert len(CODE) > 150
    assert "Reference" in named(SOURCE / "engines" / "reference" / "__init__.py")
    program = set().union(*(named(path) for path in (SOURCE / "refengine").rglob("*.py")))
    assert "pdserve.engines.reference.metrics.PATH_VLLM" in program


def test_the_wire_contract_has_no_name_of_an_engine() -> None:
    texts = [v for v in vars(metrics).values() if isinstance(v, str) and v.startswith("vllm:")]
    assert texts == []
