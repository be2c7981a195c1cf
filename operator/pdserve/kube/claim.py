"""Whose objects these are: a claim on a scope, held by the processes of one release.

A Lease elects one of the processes that know of each other (same Lease). A claim keeps apart those
that do not: it stands at a place that everybody who would act on the same objects knows, and names
its holder. It is a ConfigMap with two fields, `holder` and `renewed`.

- Free when it is not there, is empty, names us, or has not changed for `duration` while we looked
  (monotonic time; the stamp is for people).
- Taken and renewed on condition of its resourceVersion: of two takers one wins.
- Not given up on a clean exit: a successor with the same holder goes on at once, and nobody else
  gets in between, as it would while a Deployment rolls.

Neighbours: `lease` (one process of the holder's acts), the application (which scope, which place).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import CONFIGMAPS, Object

logger = logging.getLogger(__name__)

REPORT_SECONDS = 60.0
"""Between two log lines that say whose the objects are."""


class ClaimedError(Exception):
    """The scope is somebody else's; the message says whose."""


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
        """The holder stops if its last renewal is older."""
        return self.duration * 2 / 3


class Claim:
    """See the module. One per process and scope."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        holder: str,
        scope: str,
        *,
        times: ClaimTimes | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Nothing is asked or written yet.

        Args:
            client: its token bucket is bypassed, as for a Lease.
            namespace: where the claim stands.
            name: of the claim.
            holder: who claims; equal for all processes that stand in for one another.
            scope: what is claimed, in words.
            times: see `ClaimTimes`.
            wall: time of day, UTC, for people who read the claim.
        """
        self._client = client.unlimited()
        self._namespace = namespace
        self._name = name
        self._holder = holder
        self._scope = scope
        self._times = times or ClaimTimes()
        self._wall = wall
        self._found: Object | None = None
        self._version = ""
        self._changed_at = 0.0
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
                self.waiting = f"cannot read {self._place}: {error}"
            if not self.waiting:
                return
            if self._now() - said >= REPORT_SECONDS:
                said = self._now()
                logger.warning("Not acting: %s", self.waiting)
            await asyncio.sleep(self._times.look)

    async def take(self) -> None:
        """Make the scope ours.

        Raises:
            ClaimedError: it is somebody else's.
            KubeError: the API server refused.
        """
        await self._look()
        if refusal := self._refusal():
            raise ClaimedError(refusal)
        try:
            await self._write()
        except KubeError as error:
            if not (error.is_conflict or error.is_already_exists or error.is_not_found):
                raise
            raise ClaimedError(f"{self._place} was taken by another in this moment") from error
        logger.info("%s: the objects of %s are this operator's", self._place, self._scope)

    async def keep(self) -> None:
        """Renew until cancelled.

        Raises:
            ClaimedError: somebody else took it, or it could not be renewed in time.
        """
        renewed = self._now()
        while True:
            await asyncio.sleep(self._times.renew)
            sent = self._now()
            try:
                await self._look()
                if refusal := self._refusal():
                    raise ClaimedError(refusal)
                await self._write()
                renewed = sent
            except KubeError as error:
                logger.info("Renewal of %s: %s", self._place, error)
            if self._now() - renewed > self._times.deadline:
                raise ClaimedError(f"{self._place} could not be renewed in time")

    async def _look(self) -> None:
        try:
            found: Object | None = await self._client.get(CONFIGMAPS, self._name, self._namespace)
        except KubeError as error:
            if not error.is_not_found:
                raise
            found = None
        version = "" if found is None else str(found["metadata"]["resourceVersion"])
        if version != self._version:
            self._version, self._changed_at = version, self._now()
        self._found = found

    def _refusal(self) -> str:
        data = (self._found or {}).get("data") or {}
        holder = str(data.get("holder") or "")[:253]
        silent = self._now() - self._changed_at
        if holder in ("", self._holder) or silent > self._times.duration:
            return ""
        return (
            f"the objects of {self._scope} belong to operator {holder!r} ({self._place}, renewed "
            f"{str(data.get('renewed'))[:40]}); uninstall one of the two. A claim that is not "
            f"renewed for {self._times.duration:g} s is void"
        )

    async def _write(self) -> None:
        stamp = self._wall().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        data = {"holder": self._holder, "renewed": stamp}
        if self._found is None:
            made = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": self._name, "namespace": self._namespace},
                "data": data,
            }
            self._note(await self._client.create(CONFIGMAPS, made))
            return
        meta = self._found["metadata"]
        version = {
            "op": "test",
            "path": "/metadata/resourceVersion",
            "value": meta["resourceVersion"],
        }
        self._note(
            await self._client.patch_json(
                CONFIGMAPS,
                self._name,
                [version, {"op": "add", "path": "/data", "value": data}],
                namespace=self._namespace,
                uid=meta["uid"],
            )
        )

    def _note(self, written: Object) -> None:
        self._found = written
        self._version = str(written["metadata"]["resourceVersion"])
        self._changed_at = self._now()

    @property
    def _place(self) -> str:
        return f"ConfigMap {self._namespace}/{self._name}"

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
