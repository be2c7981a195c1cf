"""Which nodes the volumes of a role's instances can be reached from.

When a plan is made, the persistentVolumeClaims of templates and of the model are read by name, with
the volumes behind them, and kept for a few seconds: they are not watched. A bound claim restricts
to the nodes of its volume. A claim that waits for its first pod restricts to the nodes of free
volumes of its class, unless the class makes new ones. Every other case, and what cannot be read,
restricts nothing: the scheduler decides, as for any pod.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pdserve.api import ModelSpec, RoleTemplate, ScenarioGroup
from pdserve.controllers.shared.caches import Caches
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import (
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    STORAGE_CLASSES,
    Object,
    ObjectKey,
)
from pdserve.terms.quantity import quantity
from pdserve.topology import NodeView
from pdserve.topology.affinity import NodeIndex, Term, terms_of

FRESH: Final = 10.0
"""Seconds for which what was read counts. A refused pod is given up after 15 s: the next try knows
where its claim was bound meanwhile."""
MAX_CLAIMS: Final = 1024
"""Claims remembered; the one read first goes first."""
MAX_CLAIMS_OF_ROLE: Final = 16
"""Claims of one role that are read; further ones restrict nothing."""
MAX_TERMS: Final = 4096
"""Terms of one claim's volumes; with more it restricts nothing."""
_STATIC: Final = "kubernetes.io/no-provisioner"
_LATE: Final = "WaitForFirstConsumer"

Terms = frozenset[Term] | None
"""None: every node."""


@dataclass(frozen=True, slots=True)
class _Read:
    until: float
    terms: Terms


@dataclass(frozen=True, slots=True)
class _Free:
    """A volume that is bound to no claim."""

    claim: ObjectKey | None
    """For whom it is kept."""
    storage_class: str
    modes: frozenset[str]
    mode: str
    bytes: int
    terms: Terms


class Volumes:
    """See the module. One event loop."""

    def __init__(self, client: KubeClient, caches: Caches, steady: Callable[[], float]) -> None:
        """`steady`: seconds on a clock that never steps."""
        self._client = client
        self._caches = caches
        self._steady = steady
        self._read: dict[ObjectKey, _Read] = {}
        self._listed: tuple[float, tuple[_Free, ...]] = (0.0, ())
        self._index: NodeIndex | None = None
        self._reached: dict[frozenset[Term], frozenset[str]] = {}
        caches.nodes.on_change(self._nodes_changed)

    async def read(self, groups: Iterable[ScenarioGroup]) -> None:
        """Read the claims of these groups again, where what is known is too old. No errors."""
        for group in groups:
            for role in (group.spec.prefill, group.spec.decode):
                for name in claims_of(role, group.spec.model):
                    key = ObjectKey(group.metadata.namespace, name)
                    known = self._read.pop(key, None)
                    if known is None or known.until < self._steady():
                        terms = await self._terms(key, None if known is None else known.terms)
                        known = _Read(self._steady() + FRESH, terms)
                    self._read[key] = known
        while len(self._read) > MAX_CLAIMS:
            self._read.pop(next(iter(self._read)))

    def reach(self, namespace: str, role: RoleTemplate, model: ModelSpec) -> frozenset[str] | None:
        """Nodes from which all volumes of a role's instances are reached, as last read; None: all.

        The same object while nothing changes, so that placement may remember by it.
        """
        found: list[frozenset[Term]] = []
        for name in claims_of(role, model):
            known = self._read.get(ObjectKey(namespace, name))
            if known is not None and known.terms is not None:
                found.append(known.terms)
        if not found:
            return None
        nodes = [self._nodes_of(terms) for terms in dict.fromkeys(found)]
        return nodes[0] if len(nodes) == 1 else frozenset.intersection(*nodes)

    # --- reading ---------------------------------------------------------------------------

    async def _terms(self, key: ObjectKey, known: Terms) -> Terms:
        """Where the claim's volume is or can be; what was known last when the API server does not
        answer.
        """
        try:
            claim = await self._client.get(PERSISTENT_VOLUME_CLAIMS, key.name, key.namespace)
        except KubeError as error:
            return None if error.is_not_found or error.is_forbidden else known
        try:
            found = await self._of_claim(key, claim)
        except KubeError as error:
            return None if error.is_not_found or error.is_forbidden else known
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._caches.skipped(claim, "volume", error)
            return None
        return found if found is None or len(found) <= MAX_TERMS else None

    async def _of_claim(self, key: ObjectKey, claim: Object) -> Terms:
        spec = claim["spec"]
        if spec.get("volumeName"):
            return _affinity(await self._client.get(PERSISTENT_VOLUMES, spec["volumeName"]))
        name = spec.get("storageClassName")
        if not name:
            return None
        known = await self._client.get(STORAGE_CLASSES, name)
        if known.get("provisioner") != _STATIC or known.get("volumeBindingMode") != _LATE:
            return None
        modes, mode = frozenset(spec.get("accessModes") or ()), spec.get("volumeMode")
        least = quantity(((spec.get("resources") or {}).get("requests") or {}).get("storage", 0))
        fitting = [
            free
            for free in await self._free()
            if free.claim in (None, key)
            and free.storage_class == name
            and modes <= free.modes
            and (mode or "Filesystem") == free.mode
            and least <= free.bytes
        ]
        terms: set[Term] = set()
        for free in fitting:
            if free.terms is None:
                return None
            terms |= free.terms
        return frozenset(terms) if fitting else None

    async def _free(self) -> tuple[_Free, ...]:
        until, found = self._listed
        if until < self._steady():
            listing = await self._client.list(PERSISTENT_VOLUMES, transform=self._as_free)
            found = tuple(listing.items)
            self._listed = (self._steady() + FRESH, found)
        return found

    def _as_free(self, volume: Object) -> _Free | None:
        spec = volume.get("spec") or {}
        held = spec.get("claimRef") or {}
        taken = held.get("uid") or volume["metadata"].get("deletionTimestamp")
        if taken or not spec.get("storageClassName"):
            return None
        try:
            return _Free(
                ObjectKey(str(held.get("namespace")), str(held["name"])) if held else None,
                str(spec["storageClassName"]),
                frozenset(spec.get("accessModes") or ()),
                str(spec.get("volumeMode") or "Filesystem"),
                int(quantity((spec.get("capacity") or {}).get("storage", 0))),
                _affinity(volume),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._caches.skipped(volume, "volume", error)
            return None

    # --- nodes -----------------------------------------------------------------------------

    def _nodes_of(self, terms: frozenset[Term]) -> frozenset[str]:
        if self._index is None:
            self._index = NodeIndex({n.name: n.labels for n in self._caches.nodes.list()})
        if terms not in self._reached:
            if len(self._reached) >= MAX_CLAIMS:
                self._reached.clear()
            self._reached[terms] = self._index.matching(terms)
        return self._reached[terms]

    def _nodes_changed(self, _event: str, old: NodeView | None, new: NodeView | None) -> None:
        if old is None or new is None or old.labels != new.labels:
            self._index = None
            self._reached.clear()


def claims_of(role: RoleTemplate, model: ModelSpec) -> tuple[str, ...]:
    """Names of the persistentVolumeClaims that a role's instances mount: the model's first."""
    source = model.source
    found = [source.pvc.name] if source is not None and source.pvc is not None else []
    spec = role.template.spec if role.template is not None else None
    volumes = (spec or {}).get("volumes")
    for volume in volumes if isinstance(volumes, list) else ():
        source = volume.get("persistentVolumeClaim") if isinstance(volume, Mapping) else None
        name = source.get("claimName") if isinstance(source, Mapping) else None
        if isinstance(name, str) and 0 < len(name) <= 253:
            found.append(name)
    return tuple(dict.fromkeys(found))[:MAX_CLAIMS_OF_ROLE]


def _affinity(volume: Object) -> Terms:
    required = ((volume["spec"].get("nodeAffinity")) or {}).get("required")
    return None if required is None else terms_of(required)
