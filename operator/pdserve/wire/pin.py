"""How a pod says on which node it must run: required node affinity to the name of one node.

Written by `engines`, read by `topology` and by whatever counts what pods will take.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pdserve.frozen import remembered
from pdserve.terms.json import JsonMap, JsonObject

REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
TERMS: Final = "nodeSelectorTerms"
_FIELDS: Final = "matchFields"
_NAME: Final = "metadata.name"


def pin_to(node: str) -> JsonObject:
    """`nodeAffinity` that only this node meets."""
    pin = {"key": _NAME, "operator": "In", "values": [node]}
    return {REQUIRED: {TERMS: [{_FIELDS: [pin]}]}}


def keep_pin(terms: Iterable[JsonMap], pinned: JsonMap) -> list[JsonObject]:
    """The terms, each with the pin of `pinned`, a `nodeAffinity` of `pin_to`.

    Terms are alternatives, so each of them needs the pin.
    """
    pin = pinned[REQUIRED][TERMS][0][_FIELDS]
    return [{**term, _FIELDS: pin} for term in terms]


@remembered
def pinned_node(pod: JsonMap) -> str | None:
    """The one node that a pod's required affinity names (`metadata.name In [node]`), or None."""
    affinity = (pod.get("spec", {}).get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get(REQUIRED) or {}
    pins = {
        str(value)
        for term in required.get(TERMS) or ()
        for match in term.get(_FIELDS) or ()
        if match.get("key") == _NAME and match.get("operator") == "In"
        for value in match.get("values") or ()
    }
    return pins.pop() if len(pins) == 1 else None
