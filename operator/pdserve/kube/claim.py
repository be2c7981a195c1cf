"""Whose objects these are: a claim on a scope, held by the processes of one release.

A Lease elects one of the processes that know of each other (same Lease). A claim keeps apart those
that do not: it stands at a place that every operator of the same objects knows, and names
its holder. It is a ConfigMap with fields `holder`, `renewed` and `scope`.

- Free when it is not there, is empty, names us, or has not changed for `duration` while we looked
  (monotonic time; the stamp is for people).
- Taken and renewed on condition of its resourceVersion: of two takers one wins.
- Not given up on a clean exit: a successor with the same holder goes on at once, and no other
  gets in between, as it would while a Deployment rolls.

One scope may include another (all namespaces, one namespace). Both sides write first and look at
the other's claim then, so of two that start at once at least one sees the other:

- The narrower claim is not taken while the wider one is held; one that was taken before stands.
- The holder of the wider claim leaves out what narrower ones claim, for as long as they are
  renewed; it deletes a void one, so that its holder of old finds the scope taken. One that a
  finalizer keeps is emptied. One that may not be deleted stands, void or not, and is logged.

So a claim in a namespace acts on that namespace alone, by any writer.

Neighbours: `lease` (one process of the holder's acts), the application (which scope, which place).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import CONFIGMAPS, Object

logger = logging.getLogger(__name__)

REPORT_SECONDS = 60.0
"""Between two log lines that say whose the objects are."""


class ClaimedError(Exception):
    """The scope is another operator's; the message says whose."""


@dataclass(frozen=True, slots=True)
class ClaimTimes:
    """Seconds."""

    duration: float = 300.0
    """A claim that did not change for so long may be taken by others."""
    renew: float = 30.0
    """Between renewals."""
    look: float = 5.0
    """Between looks of who waits."""

    @property
    def deadline(self) -> float:
        """Seconds since its last renewal after which the holder stops: two thirds of `duration`."""
        return self.duration * 2 / 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where a claim stands, and what it claims."""

    namespace: str
    name: str
    scope: str
    """In words, e.g. `all namespaces`. Two scopes of the same words are one."""

    def __str__(self) -> str:
        return f"ConfigMap {self.namespace}/{self.name}"


class _Sight:
    """What one look after the other found at a place."""

    def __init__(self) -> None:
        self.found: Object | None = None
        self._version = ""
        self._changed_at = 0.0

    def note(self, found: Object | None) -> None:
        """The claim as it is now; None where there is none."""
        version = "" if found is None else str(found["metadata"]["resourceVersion"])
        if version != self._version:
            self._version, self._changed_at = version, _now()
        self.found = found

    def field(self, name: str) -> str:
        """A field of the claim, bounded; "" where it is not there."""
        return str(((self.found or {}).get("data") or {}).get(name) or "")[:253]

    def is_void(self, times: ClaimTimes) -> bool:
        """Whether it did not change for so long that others may take it."""
        return _now() - self._changed_at > times.duration


class ScopeClaim:
    """See the module. One per process and scope."""

    def __init__(
        self,
        client: KubeClient,
        place: Place,
        holder: str,
        *,
        wider: Place | None = None,
        narrower: bool = False,
        on_left: Callable[[Mapping[str, str]], None] = lambda _left: None,
        times: ClaimTimes | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Nothing is asked or written yet.

        Args:
            client: its token bucket is bypassed, as for a Lease.
            place: of the claim.
            holder: who claims; equal for all processes that stand in for one another.
            wider: the claim on a scope that includes this one.
            narrower: claims of the same name in other namespaces are on those namespaces.
            on_left: called while this process holds the claim, with what it must leave alone:
                operators by namespace; "" stands for what is of no namespace, which belongs to
                the holder of the wider claim.
            times: see `ClaimTimes`.
            wall: time of day, UTC, for people who read the claim.
        """
        self._client = client.unlimited()
        self._place = place
        self._holder = holder
        self._wider = wider
        self._has_narrower = narrower
        self._on_left = on_left
        self._times = times or ClaimTimes()
        self._wall = wall
        self._own = _Sight()
        self._above = _Sight()
        self._below: dict[str, _Sight] = {}
        self._warned = -REPORT_SECONDS
        self.waiting = ""
        """Why this process does not act, for its readiness page; "" while it may."""

    async def wait_free(self) -> None:
        """Return once the scope is unclaimed or ours; writes nothing."""
        said = -REPORT_SECONDS
        while True:
            try:
                await self._look()
                self.waiting = self._refusal()
            except KubeError as error:
                self.waiting = f"cannot read who acts on {self._place.scope}: {error}"
            if not self.waiting:
                return
            if _now() - said >= REPORT_SECONDS:
                said = _now()
                logger.warning("Not acting: %s", self.waiting)
            await asyncio.sleep(self._times.look)

    async def take(self) -> None:
        """Make the scope ours, and tell what of it is left to others.

        Raises:
            ClaimedError: it is another operator's.
            KubeError: the API server refused.
        """
        await self._look()
        if refusal := self._refusal():
            raise ClaimedError(refusal)
        stood = self._own.field("holder") == self._holder
        try:
            await self._write()
        except KubeError as error:
            if not (error.is_conflict or error.is_already_exists or error.is_not_found):
                raise
            raise ClaimedError(f"{self._place} was taken by another in this moment") from error
        await self._survey()
        if not stood and self._wider_holder():
            await self._give_up(self._own, self._place.namespace)
            raise ClaimedError(self._refusal_of(self._above, self._wider or self._place))
        self._on_left(self._left())
        logger.info("%s: the objects of %s are this operator's", self._place, self._place.scope)

    async def keep(self) -> None:
        """Renew until cancelled, and tell what of the scope is left to others.

        Raises:
            ClaimedError: another operator took it, or it could not be renewed in time.
        """
        renewed = _now()
        while True:
            await asyncio.sleep(self._times.renew)
            sent = _now()
            try:
                await self._look()
                if refusal := self._refusal():
                    raise ClaimedError(refusal)
                await self._write()
                renewed = sent
                await self._survey()
                self._on_left(self._left())
            except KubeError as error:
                logger.info("Renewal of %s: %s", self._place, error)
            if _now() - renewed > self._times.deadline:
                raise ClaimedError(f"{self._place} could not be renewed in time")

    # --- looking ---------------------------------------------------------------------------

    async def _look(self) -> None:
        """At our own claim, and at the wider one."""
        self._own.note(await self._get(self._place))
        if self._wider is not None:
            self._above.note(await self._get(self._wider))

    async def _survey(self) -> None:
        """At the wider claim and the narrower ones; gives up those of the latter that are void."""
        if self._wider is not None:
            self._above.note(await self._get(self._wider))
        if not self._has_narrower:
            return
        listing = await self._client.list(
            CONFIGMAPS, field_selector=f"metadata.name={self._place.name}"
        )
        found = {str(c["metadata"]["namespace"]): c for c in listing.items}
        found.pop(self._place.namespace, None)
        self._below = {n: self._below.get(n, _Sight()) for n in found}
        stuck: list[str] = []
        for namespace, sight in self._below.items():
            sight.note(found[namespace])
            if not sight.field("holder") or not sight.is_void(self._times):
                continue
            try:
                await self._give_up(sight, namespace)
            except KubeError as error:
                stuck.append(f"{namespace}: {error}")
        if stuck and _now() - self._warned >= REPORT_SECONDS:
            self._warned = _now()
            logger.warning(
                "ConfigMap %s is void and cannot be deleted in %d namespaces, which are left to "
                "its holders: %s", self._place.name, len(stuck), "; ".join(stuck)[:2000],
            )  # fmt: skip

    async def _get(self, place: Place) -> Object | None:
        try:
            return await self._client.get(CONFIGMAPS, place.name, place.namespace)
        except KubeError as error:
            if not error.is_not_found:
                raise
            return None

    # --- judging ---------------------------------------------------------------------------

    def _refusal(self) -> str:
        holder = self._own.field("holder")
        if holder == self._holder:
            return ""
        if holder and not self._own.is_void(self._times):
            return self._refusal_of(self._own, self._place)
        if self._wider is not None and self._wider_holder():
            return self._refusal_of(self._above, self._wider)
        return ""

    def _refusal_of(self, sight: _Sight, place: Place) -> str:
        return (
            f"the objects of {place.scope} belong to operator {sight.field('holder')!r} ({place}, "
            f"renewed {sight.field('renewed')[:40]}); uninstall one of the two. A claim that is "
            f"not renewed for {self._times.duration:g} s is void"
        )

    def _wider_holder(self) -> str:
        """The other holder of the wider claim; "" where there is none."""
        holder, above = self._above.field("holder"), self._above
        scope = above.field("scope")
        if self._wider is None or holder == self._holder or above.is_void(self._times):
            return ""
        # At its place may be the claim of an operator of that one namespace.
        return holder if scope in ("", self._wider.scope) else ""

    def _left(self) -> Mapping[str, str]:
        above = self._wider_holder()
        left = {"": above} if above else {}
        for namespace, sight in self._below.items():
            # A void one that stands: its holder of old would take itself for the holder still.
            holder = sight.field("holder")
            if holder not in ("", self._holder):
                left[namespace] = holder
        return left

    # --- writing ---------------------------------------------------------------------------

    async def _write(self) -> None:
        stamp = self._wall().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        data = {"holder": self._holder, "renewed": stamp, "scope": self._place.scope}
        namespace, name = self._place.namespace, self._place.name
        if self._own.found is None:
            made = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": namespace},
                "data": data,
            }
            self._own.note(await self._client.create(CONFIGMAPS, made))
            return
        meta = self._own.found["metadata"]
        operations = [_as_seen(meta), {"op": "add", "path": "/data", "value": data}]
        written = await self._client.patch_json(
            CONFIGMAPS, name, operations, namespace=namespace, uid=meta["uid"]
        )
        self._own.note(written)

    async def _give_up(self, sight: _Sight, namespace: str) -> None:
        """Delete a claim as it was seen, or empty it where a finalizer keeps it.

        One that changed since stands.

        Raises:
            KubeError: it may not be changed.
        """
        assert sight.found is not None  # noqa: S101 - the callers' choice
        meta = sight.found["metadata"]
        name = self._place.name
        try:
            if "deletionTimestamp" not in meta:
                answer = await self._client.delete(
                    CONFIGMAPS, name, namespace=namespace,
                    uid=meta["uid"], resource_version=meta["resourceVersion"],
                )  # fmt: skip
                kept = answer.get("metadata") or {}
                if answer.get("kind") != "ConfigMap" or "deletionTimestamp" not in kept:
                    sight.note(None)
                    return
                meta = kept
            emptied = await self._client.patch_json(
                CONFIGMAPS, name, [_as_seen(meta), {"op": "add", "path": "/data", "value": {}}],
                namespace=namespace, uid=meta["uid"],
            )  # fmt: skip
            sight.note(emptied)
        except KubeError as error:
            if not (error.is_conflict or error.is_not_found):
                raise


def _as_seen(meta: Mapping[str, object]) -> Object:
    """The operation of a JSON patch that holds it to the version that was seen."""
    version = meta["resourceVersion"]
    return {"op": "test", "path": "/metadata/resourceVersion", "value": version}


def _now() -> float:
    return asyncio.get_running_loop().time()
