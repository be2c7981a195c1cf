"""What "the largest P/D group" of a RoCEDomain is measured in: the shapes that groups there have.

Every node event asks, and nothing but a ScenarioGroup's spec changes the answer. So it is found
again only after such a change. Neighbour: the reconciler of RoCEDomains writes it into status.
"""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.controllers.shared.caches import BY_DOMAIN, Caches
from pdserve.controllers.shared.skipped import read_each
from pdserve.kube.held import ChangeType
from pdserve.kube.resource import Object
from pdserve.placement import Shape

Shapes = tuple[Shape, Shape]
"""Of a prefill and a decode instance."""


class ShapesInUse:
    """See the module. Make one per set of caches, before they run; one event loop."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches
        self._known: dict[str, Mapping[str, Shapes]] = {}
        """By RoCEDomain."""
        caches.groups.on_change(self._group)

    def of(self, domain: str) -> Mapping[str, Shapes]:
        """What a prefill and a decode instance take, per resource, as the first ScenarioGroup (by
        namespace and name) of the RoCEDomain has them.

        None for an operator of one namespace: there may be another beside it, who sees other
        ScenarioGroups and writes the same status. All see the same nodes and pods.
        """
        known = self._known.get(domain)
        if known is None:
            known = self._known[domain] = self._find(domain)
        return known

    def _find(self, domain: str) -> Mapping[str, Shapes]:
        shapes: dict[str, Shapes] = {}
        if self._caches.groups.namespace is not None:
            return shapes
        groups = self._caches.groups.by_index(BY_DOMAIN, domain)
        for prefill, decode in read_each(groups, _shapes, self._caches.skipped, "observe"):
            if prefill.resource == decode.resource:
                shapes.setdefault(prefill.resource, (prefill, decode))
        return shapes

    def _group(self, _event: ChangeType, old: Object | None, new: Object | None) -> None:
        if old is None or new is None or old.get("spec") is not new.get("spec"):
            self._known.clear()


def _shapes(group: Object) -> Shapes:
    prefill, decode = (
        Shape(
            str(instance["resource"]),
            int(instance["devicesPerNode"]),
            members=int(instance.get("nodes", 1)),
        )
        for instance in (group["spec"][role]["instance"] for role in ("prefill", "decode"))
    )
    return prefill, decode
