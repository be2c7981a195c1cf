"""Selectors of lists and watches, for the in-memory API model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import Object


@dataclass(frozen=True, slots=True)
class Selection:
    """Namespace, label and field selectors of a list or watch."""

    namespace: str | None
    labels: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def of(cls, request: KubeRequest) -> Selection:
        """As the request asks. Supported: `a=b`, `a!=b`, `a`, `!a`; field selectors with `=`."""
        labels = request.query.get("labelSelector", "")
        field_terms = request.query.get("fieldSelector", "")
        return cls(
            request.namespace,
            tuple(filter(None, labels.split(","))),
            tuple(filter(None, field_terms.split(","))),
        )

    def includes(self, obj: Object) -> bool:
        """Whether the object is selected."""
        meta = obj["metadata"]
        if self.namespace and meta.get("namespace") != self.namespace:
            return False
        held = meta.get("labels") or {}
        return all(_label_term(term, held) for term in self.labels) and all(
            _field_value(obj, term.partition("=")[0]) == term.partition("=")[2].lstrip("=")
            for term in self.fields
        )


def _label_term(term: str, labels: Mapping[str, str]) -> bool:
    if "!=" in term:
        name, _, value = term.partition("!=")
        return labels.get(name) != value
    if "=" in term:
        name, _, value = term.partition("=")
        return labels.get(name) == value.lstrip("=")
    return term[1:] not in labels if term.startswith("!") else term in labels


def _field_value(obj: Object, path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        value = (value or {}).get(part)
    return str(value or "")
