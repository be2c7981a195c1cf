"""Finds every code that a person may meet: by reading the source, so that none is forgotten.

A code is a short word in a fixed place: the reason of a condition, of an Event or of a decision,
a fault, an outcome, a kubelet's waiting reason that is looked for, a `code` of an API error.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pdserve.controllers.shared import event_reasons
from pdserve.groups.instances import Fault
from pdserve.ratio.types import Outcome, Reason
from pdserve.wire import calls

SOURCE = Path(__file__).resolve().parents[3] / "operator" / "pdserve"
_WORD = re.compile(r"[A-Z][A-Za-z]+\Z")
_CAMEL = re.compile(r"([A-Z][a-z]+){2,}\Z")
_STATUS = {"True", "False", "Unknown"}
# Words of the Kubernetes API in the same spelling that are not reasons of ours.
_NOT_CODES = {
    "PDService", "ScenarioGroup", "RoCEDomain", "ConfigMap", "ServiceAccount", "RoleBinding",
    "RuntimeDefault", "RollingUpdate", "TemplateValid", "AdviceAvailable", "RatioInBounds",
    "ApprovalPending",
    "PodScheduled", "CamelCase", "NoSchedule", "NoExecute", "LabelsComplete", "TreeConsistent",
    "NotReady", "ScheduleAnyway", "PodDisruptionBudget", "AlwaysAllow", "NetworkPolicy",
    "WaitForFirstConsumer",
}  # fmt: skip


@functools.cache
def reasons() -> frozenset[str]:
    """Reasons of conditions, Events and decisions, faults and outcomes."""
    found = {str(r) for r in Reason} | set(event_reasons.ALL)
    found |= set(get_args(Fault)) | set(get_args(Outcome))
    for path in _files("controllers", "desired", "groups"):
        tree = ast.parse(path.read_text())
        found |= set(_condition_reasons(tree))
        found |= {w for w in _strings(tree) if _CAMEL.match(w)}
    return frozenset(found - _NOT_CODES - _STATUS)


@functools.cache
def error_codes() -> frozenset[str]:
    """`error.code` of any HTTP answer, and reasons of `x-pdserve-reject`."""
    found = {v for k, v in vars(calls).items() if k.startswith("REJECT_")}
    for path in _files("."):
        for node in ast.walk(ast.parse(path.read_text())):
            found |= set(_codes_of(node))
    return frozenset(found)


def _files(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((SOURCE / package).rglob("*.py"))


def _strings(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def _condition_reasons(tree: ast.AST) -> Iterator[str]:
    """The third argument of `ConditionState(...)`, the first of `not_ready(...)`, and words in what
    functions return as tuples, or assign to `reason`: they end up in one of these places.
    """
    for node in ast.walk(tree):
        places: list[ast.expr] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "ConditionState":
                places = node.args[2:3]
            elif node.func.id == "not_ready":
                places = node.args[:1]
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            places = [e for e in node.value.elts if isinstance(e, ast.Constant)]
        places = [*places, *_assigned(node, "reason")]
        for place in places:
            yield from (w for w in _strings(place) if _WORD.match(w))


def _codes_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.keyword) and node.arg == "code":
        yield from _words(node.value)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("overloaded", "Refused"):
        yield from (w for a in node.args[:1] for w in _words(a))
    for value in _assigned(node, "code"):
        yield from _words(value)


def _words(value: ast.expr) -> Iterator[str]:
    """The constant itself; what is computed comes from elsewhere."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value


def _assigned(node: ast.AST, name: str) -> Iterator[ast.expr]:
    """What a variable of that name is set to, also as one of several."""
    if not isinstance(node, ast.Assign):
        return
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = zip(target.elts, node.value.elts, strict=True)
        else:
            pairs = zip([target], [node.value], strict=True)
        yield from (v for t, v in pairs if isinstance(t, ast.Name) and t.id == name)
