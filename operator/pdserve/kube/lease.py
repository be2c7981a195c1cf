"""One active process among several, by a `coordination.k8s.io` Lease.

Differences from the stock electors: durations run on the monotonic clock only (wall time in the
Lease is for people), a clean exit frees the Lease so that a standby takes over within one retry,
and the leader's work is one coroutine that is cancelled, and has ended, before another process may
start. After a kill a standby waits out `duration` since it last saw the Lease change.

    t=0 renew sent   ...   t<=10 s renewed or work is cancelled   ...   t=15 s others may take it

A Lease is no fence: a paused process may still have a request on the wire. What makes a second
writer harmless are uid and resourceVersion preconditions on every write.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil

from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import LEASES, Object

logger = logging.getLogger(__name__)

RELEASE_SECONDS = 2.0
"""How long a clean exit tries to free the Lease."""
LONGEST_TERM = 300.0
"""Seconds; a Lease that claims a longer one, which no release sets, is taken all the same."""
MAX_TRANSITIONS = 2**31 - 1
"""What the API stores; beyond it the server refuses the whole Lease."""


class LeadershipLostError(Exception):
    """The work did not end in time after the Lease was lost: this process must exit."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds. A standby takes over within `duration + retry` of a kill, `retry` of a release."""

    duration: float = 15.0
    """Others wait this long since they saw the last renewal."""
    renew_deadline: float = 10.0
    """The leader stops if its last renewal was sent this long ago."""
    retry: float = 2.0
    """Between renewals, and between a standby's looks."""
    jitter: float = 0.2
    """`retry` is spread by this fraction, upwards."""

    def __post_init__(self) -> None:
        if not 0 < self.retry * (1 + self.jitter) < self.renew_deadline < self.duration:
            raise ValueError(f"want 0 < retry*(1+jitter) < renew_deadline < duration: {self}")


class LeaseElector:
    """See the module. `run` is the whole life of a candidate."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        incarnation: str = "",
        times: LeaseTimes | None = None,
        alive: Callable[[], bool] = lambda: True,
        on_started: Callable[[], None] = lambda: None,
        on_stopped: Callable[[], None] = lambda: None,
        registry: Registry | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
    ) -> None:
        """Make a candidate.

        Args:
            client: its token bucket is bypassed: a renewal must not wait behind other writes.
            namespace: of the Lease.
            name: of the Lease.
            identity: who this is, e.g. the pod's name; made unique by `incarnation`.
            incarnation: what no two candidates share while both may live, e.g. the pod's uid: a
                container restarted in place then goes on with the Lease it held, because its
                predecessor is gone. Empty: random, as where nothing can promise that.
            times: see `LeaseTimes`.
            alive: whether this process can do the work; while False the Lease is neither taken
                nor renewed (`lease_thread`).
            on_started: called just before the work starts.
            on_stopped: called just after it ended.
            registry: where the metrics go.
            wall: time of day, UTC, for people who read the Lease.
            rng: the jitter's randomness.

        Raises:
            ValueError: `identity` is empty.
        """
        if not identity:
            raise ValueError("identity must not be empty: an empty holder means a free Lease")
        self._client = client.unlimited()
        self._namespace = namespace
        self._name = name
        self._times = times or LeaseTimes()
        self._alive = alive
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._wall = wall
        # Keeps candidates from asking in step; nothing secret depends on it.
        self._rng = rng or random.Random()  # noqa: S311 - jitter and schedules, no secrets
        self.identity = f"{identity}_{incarnation or format(self._rng.getrandbits(32), '08x')}"
        self._lease: Object | None = None
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = 0.0
        self._renewed_at: float | None = None
        self._leading = False
        self._status = (registry or Registry()).gauge(
            "leader_election_master_status", "1 while this process leads, else 0.", ("name",)
        )
        self._status.labels(name).set(0)

    @property
    def leading(self) -> bool:
        """True only while no other process can hold the Lease (checked against the clock now)."""
        if not self._leading or self._renewed_at is None:
            return False
        return self._now() - self._renewed_at < self._times.renew_deadline

    @property
    def holder(self) -> str:
        """Who held the Lease when last looked at; "" if free or never seen."""
        return self._holder_of(self._lease or {})

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Stand by; while leading, run `work`; after losing the Lease, stand by again.

        Returns when `work` returns, raises what it raises. On cancellation and on both of these
        the Lease is freed after the work has ended.

        Raises:
            LeadershipLostError: the work did not end in time; the process must exit.
        """
        while True:
            await self._acquire()
            try:
                finished = await self._lead(work)
            finally:
                if self._renewed_at is not None:
                    await self._release()
            if finished:
                return

    # --- standing by -----------------------------------------------------------------------

    async def _acquire(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._times.renew_deadline):
                    if self._alive() and await self._try_take():
                        return
            except (KubeError, TimeoutError) as error:
                logger.info("Lease %s: %s", self._name, error)
            await asyncio.sleep(self._until_next_look())

    async def _try_take(self) -> bool:
        sent = self._now()
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace)
        except KubeError as error:
            if not error.is_not_found:
                raise
            return self._took(await self._client.create(LEASES, self._new()), sent)
        self._look(lease)
        if not self._free(lease):
            return False
        try:
            return self._took(await self._client.update(LEASES, self._claimed(lease)), sent)
        except KubeError as error:
            if error.is_conflict:
                return False  # another candidate was faster
            raise

    def _look(self, lease: Object) -> None:
        self._lease = lease
        record = (self._holder_of(lease), lease["metadata"]["resourceVersion"])
        if record != self._seen:
            self._seen, self._seen_at = record, self._now()

    def _free(self, lease: Object) -> bool:
        # Our own name on it: a claim whose answer was lost, or the Lease of our predecessor.
        return self._holder_of(lease) in ("", self.identity) or self._now() > self._expiry()

    def _expiry(self) -> float:
        """When the Lease last looked at may be taken, if it does not change any more."""
        spec = (self._lease or {}).get("spec") or {}
        claimed = float(spec.get("leaseDurationSeconds") or self._times.duration)
        return self._seen_at + min(claimed, max(LONGEST_TERM, self._times.duration))

    def _until_next_look(self) -> float:
        left = self._expiry() - self._now()
        # Just after it expires if that is sooner, a little spread so that one candidate wins.
        soon = left + self._rng.uniform(0.01, 0.2)
        return min(self._pause(), soon) if self.holder and left > 0 else self._pause()

    @staticmethod
    def _holder_of(lease: Object) -> str:
        return (lease.get("spec") or {}).get("holderIdentity") or ""

    def _took(self, lease: Object, sent: float) -> bool:
        self._lease, self._renewed_at = lease, sent
        return True

    # --- leading ---------------------------------------------------------------------------

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Run the work until it ends (True) or the Lease is lost (False)."""
        self._set_leading(True)
        logger.info("Leading by lease %s as %s", self._name, self.identity)
        self._on_started()
        task = asyncio.ensure_future(work())
        keeper = asyncio.ensure_future(self._keep())
        try:
            await asyncio.wait((task, keeper), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await keeper  # returned: the Lease is lost; raised: a defect, shown here
                return False
            await task  # raises what the work raised
            return True
        finally:
            # Until the work has ended there is nothing to release.
            renewed, self._renewed_at = self._renewed_at, None
            await _end(keeper)
            await self._stop(task)
            self._renewed_at = renewed
            self._set_leading(False)
            self._on_stopped()

    async def _keep(self) -> None:
        """Renew until that is no longer certain; returns when the Lease is lost."""
        while True:
            assert self._renewed_at is not None  # noqa: S101 - narrows the type only
            deadline = self._renewed_at + self._times.renew_deadline
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.sleep(self._pause())
                    if self._alive() and not await self._renew():
                        self._renewed_at = None
                        return
            except TimeoutError:
                logger.warning("Lease %s could not be renewed in time", self._name)
                self._renewed_at = None
                return

    async def _renew(self) -> bool:
        """True: renewed, or not known (try again); False: another process has it."""
        assert self._lease is not None  # noqa: S101 - narrows the type only
        sent = self._now()
        try:
            self._took(await self._client.update(LEASES, self._claimed(self._lease)), sent)
        except KubeError as error:
            logger.info("Renewal of lease %s: %s", self._name, error)
            if error.is_conflict:
                return await self._still_ours()
            if error.is_not_found:
                return False
        return True

    async def _still_ours(self) -> bool:
        """After a conflict: a renewal whose answer was lost, or a real change of holder?"""
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace)
        except KubeError as error:
            return not error.is_not_found
        self._lease = lease
        return self._holder_of(lease) == self.identity

    async def _stop(self, task: asyncio.Future[None]) -> None:
        if task.done():
            return
        task.cancel()
        # What is left until others may start; a little of it is kept as distance.
        grace = (self._times.duration - self._times.renew_deadline) * 0.8
        await asyncio.wait((task,), timeout=grace)
        if not task.done():
            raise LeadershipLostError(f"work went on {grace:g} s after lease {self._name} ended")
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("The work failed while it was being stopped", exc_info=error)

    async def _release(self) -> None:
        """Free the Lease if it is still ours; a standby waits out its duration if that fails."""
        self._renewed_at = None
        with suppress(KubeError, TimeoutError):
            async with asyncio.timeout(RELEASE_SECONDS):
                lease = await self._client.get(LEASES, self._name, self._namespace)
                if self._holder_of(lease) != self.identity:
                    return
                freed = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._client.update(LEASES, {**lease, "spec": freed})
                logger.info("Lease %s released", self._name)

    # --- the record ------------------------------------------------------------------------

    def _claimed(self, lease: Object) -> Object:
        spec = dict(lease.get("spec") or {})
        stamp = self._stamp()
        if spec.get("holderIdentity") != self.identity:
            spec["acquireTime"] = stamp
            changes = int(spec.get("leaseTransitions") or 0)
            spec["leaseTransitions"] = min(changes + 1, MAX_TRANSITIONS)
        spec |= self._term(stamp)
        return {**lease, "spec": spec}

    def _new(self) -> Object:
        stamp = self._stamp()
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {"acquireTime": stamp, "leaseTransitions": 0, **self._term(stamp)},
        }

    def _term(self, stamp: str) -> Object:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": ceil(self._times.duration),
            "renewTime": stamp,
        }

    def _stamp(self) -> str:
        return self._wall().strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _pause(self) -> float:
        return self._times.retry * (1 + self._rng.uniform(0, self._times.jitter))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _set_leading(self, leading: bool) -> None:
        self._leading = leading
        self._status.labels(self._name).set(leading)


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait((task,))
