"""Which nodes a node selector matches, as volumes and pods state them. Pure.

A term matches a node when all its requirements do, a selector when any of its terms does; a term
without requirements matches nothing (Kubernetes' own rules). Nodes are looked up by label, so
that thousands of volumes of one node each cost no pass over all nodes each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pdserve.terms.json import JsonMap
from pdserve.terms.raw import part

_NAME = "metadata.name"
_DECIMAL = re.compile(r"[+-]?[0-9]{1,100}", re.ASCII)
"""No label is longer."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a label, or the name of the node (`metadata.name`), has to be."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


Term = tuple[Requirement, ...]


def terms_of(selector: object) -> frozenset[Term]:
    """The terms of a `NodeSelector`.

    Raises:
        ValueError: it is not one.
    """
    if not isinstance(selector, Mapping):
        raise ValueError("a node selector must be an object")
    listed = _objects(selector.get("nodeSelectorTerms"))
    return frozenset(
        tuple(
            _requirement(found, is_field=part == "matchFields")
            for part in ("matchExpressions", "matchFields")
            for found in _objects(term.get(part))
        )
        for term in listed
    )


def demanded(spec: JsonMap) -> frozenset[Term] | None:
    """What a pod's node selector and required node affinity demand, names of nodes left out.

    None: nothing.

    Raises:
        ValueError: one of them is malformed.
    """
    selector = part(spec, "nodeSelector")
    chosen = tuple(Requirement(k, "In", (v,)) for k, v in sorted(selector.items()))
    affinity = part(part(spec, "affinity"), "nodeAffinity")
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    terms = {()} if required is None else terms_of(required)
    found = frozenset((*chosen, *(r for r in term if r.key != _NAME)) for term in terms)
    return None if () in found else found


def matches(terms: Iterable[Term], node: str, labels: Mapping[str, str]) -> bool:
    """Whether any of the terms matches this one node."""
    return bool(NodeIndex({node: labels}).matching(terms))


def term_text(term: Term) -> str:
    """`disk=ssd, zone in (a, b)`."""
    return ", ".join(_requirement_text(r) for r in term) or "nothing"


class NodeIndex:
    """Nodes by their labels."""

    def __init__(self, nodes: Mapping[str, Mapping[str, str]]) -> None:
        """`nodes`: labels by node name."""
        self._all = frozenset(nodes)
        self._nodes = nodes
        self._by_key: dict[str, dict[str, set[str]]] = {}

    def matching(self, terms: Iterable[Term]) -> frozenset[str]:
        """Names of the nodes that any of the terms matches."""
        found: set[str] = set()
        for term in terms:
            if term:
                found |= frozenset.intersection(*(self._meeting(r) for r in term))
        return frozenset(found)

    def _meeting(self, need: Requirement) -> frozenset[str]:
        have = self._values(need.key)
        if need.operator in ("In", "NotIn"):
            named = frozenset(n for v in need.values for n in have.get(v, ()))
            return named if need.operator == "In" else self._all - named
        if need.operator in ("Exists", "DoesNotExist"):
            there = frozenset(n for nodes in have.values() for n in nodes)
            return there if need.operator == "Exists" else self._all - there
        bound = _integer(need.values[0]) if len(need.values) == 1 else None
        if bound is None or need.operator not in ("Gt", "Lt"):
            return frozenset()
        numbers = ((_integer(value), nodes) for value, nodes in have.items())
        above = need.operator == "Gt"
        return frozenset(
            n
            for number, nodes in numbers
            if number is not None and (number > bound if above else number < bound)
            for n in nodes
        )

    def _values(self, key: str) -> Mapping[str, set[str]]:
        if key not in self._by_key:
            found: dict[str, set[str]] = {}
            for name, labels in self._nodes.items():
                value = name if key == _NAME else labels.get(key)
                if value is not None:
                    found.setdefault(value, set()).add(name)
            self._by_key[key] = found
        return self._by_key[key]


_SIGNS = {"In": "in", "NotIn": "not in", "Gt": ">", "Lt": "<"}


def _requirement_text(need: Requirement) -> str:
    if need.operator in ("Exists", "DoesNotExist"):
        return need.key if need.operator == "Exists" else f"!{need.key}"
    if need.operator == "In" and len(need.values) == 1:
        return f"{need.key}={need.values[0]}"
    listed = ", ".join(need.values)
    values = listed if need.operator in ("Gt", "Lt") else f"({listed})"
    return f"{need.key} {_SIGNS.get(need.operator, need.operator)} {values}"


def _requirement(found: JsonMap, *, is_field: bool) -> Requirement:
    key, operator, values = found.get("key"), found.get("operator"), found.get("values") or ()
    if not isinstance(key, str) or not isinstance(operator, str):
        raise ValueError("a requirement needs a key and an operator")
    if is_field != (key == _NAME):
        raise ValueError(f"{key!r} is no such {'field' if is_field else 'label'}")
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{key!r}: values must be a list of strings")
    return Requirement(key, operator, tuple(values))


def _objects(value: list[JsonMap] | None) -> list[JsonMap]:
    found = value or []
    if not isinstance(found, list) or not all(isinstance(x, Mapping) for x in found):
        raise ValueError("a node selector must be lists of objects")
    return found


def _integer(text: str) -> int | None:
    """A label's number; None where it is none, as for Kubernetes (decimal, of 64 bits)."""
    if not _DECIMAL.fullmatch(text):
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None
