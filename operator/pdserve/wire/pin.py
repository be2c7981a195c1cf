"""How a pod says on which node it must run: required node affinity to the name of one node.

Written by `engines`, read by `topology` and by whatever counts what pods will take.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pdserve.terms.json import JsonMap, JsonObject
from pdserve.terms.raw import part, parts, texts

REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
TERMS: Final = "nodeSelectorTerms"
_FIELDS: Final = "matchFields"
_NAME: Final = "metadata.name"


def pin_to(node: str) -> JsonObject:
    """`nodeAffinity` that only the node of this name meets."""
    pin = {"key": _NAME, "operator": "In", "values": [node]}
    return {REQUIRED: {TERMS: [{_FIELDS: [pin]}]}}


def keep_pin(terms: Iterable[JsonMap], pinned: JsonMap) -> list[JsonObject]:
    """The terms, each with the pin of `pinned`, a `nodeAffinity` of `pin_to`.

    Terms are alternatives, so each of them needs the pin.
    """
    pin = pinned[REQUIRED][TERMS][0][_FIELDS]
    return [{**term, _FIELDS: pin} for term in terms]


def pinned_node(pod: JsonMap) -> str | None:
    """The one node that a pod's required affinity names (`metadata.name In [node]`), or None.

    Raises:
        ObjectError: a part of the affinity is no object or list.
    """
    affinity = part(part(part(pod, "spec"), "affinity"), "nodeAffinity")
    pins = {
        value
        for term in parts(part(affinity, REQUIRED), TERMS)
        for match in parts(term, _FIELDS)
        if match.get("key") == _NAME and match.get("operator") == "In"
        for value in texts(match, "values")
    }
    return pins.pop() if len(pins) == 1 else None
