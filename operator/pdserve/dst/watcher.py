"""Checks the invariants at every write of the operator, and once a second on the whole cluster.

Numbers are those of docs/architecture.md and of the design's list. The watcher reads the true state
(`truth`), the operator reads caches over a bad network. So each rule grants the operator `LAG`
seconds, which do not run while it cannot reach the API server.

    1  routed instances are linked and healthy      6  nothing scales on false metrics
    2, 13  no healthy instance is given up without   7  a revert keeps serving pods
       a planned change                              9  foreign objects stay untouched
    3  planned changes keep one P and one D         10  the operator lives, repair is prompt
    4  one fault replaces one instance              15  nothing crosses a namespace
    5  drained before deleted

`schedule` checks 8 by running a schedule twice, and that the cluster ends as wanted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.asked import Asked, ScenarioName, current_revision, scenario_name
from pdserve.dst.lookups import (
    drain_begins,
    group_of,
    instances_of,
    labels_of,
    line_of,
    newest_applied_in,
    place_of,
)
from pdserve.dst.route_tables import routed_ids
from pdserve.dst.truth import engine_of, healthy, is_cordoned, starts
from pdserve.dst.violation import Violation
from pdserve.dst.world import World
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, PODS, Object, ObjectKey
from pdserve.ratio.types import Counts
from pdserve.wire import names

LAG = 20.0
"""Seconds after which the operator must know what happened."""
ROUTED_LAG = 8.0
"""Seconds for which a route may still name an instance that ended or restarted."""
REPAIR_LAG = 15.0
"""Seconds after which an instance that a user deleted or that failed must have a successor."""
DRAIN_SECONDS = 60.0
"""recovery.drainSeconds of every service: the API's default."""


@dataclass(slots=True)
class Watcher:
    """See the module. `found` holds the first violation."""

    world: World
    found: Violation | None = None
    active: bool = False
    harmed: dict[str, float] = field(default_factory=dict)
    """Pod uids that the schedule broke, and when."""
    deleted: dict[str, tuple[float, Object]] = field(default_factory=dict)
    """By uid, pods that a user deleted and when: a decision made before may still take effect."""
    foreign: set[str] = field(default_factory=set)
    """Uids of foreign objects."""
    metrics_are_false: bool = False
    trouble_until: float = 0.0
    """The operator cannot be expected to know or do anything before this loop time."""
    writes: list[str] = field(default_factory=list)
    """What the operator wrote, in order."""
    complete_at_start: dict[ScenarioName, Counts] = field(default_factory=dict)
    made: dict[ScenarioName, int] = field(default_factory=dict)
    """Pods the operator made since `begin`."""
    asked: Asked = field(init=False)
    """Counts and revisions that are in force."""
    _drained: dict[str, float] = field(default_factory=dict)
    _routed: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    owed: dict[tuple[str, str], float] = field(default_factory=dict)
    """Namespace and slot of instances that must be replaced, and since when."""
    _gone: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.asked = Asked(self.world)

    # --- how a schedule uses it --------------------------------------------------------------

    def begin(self) -> None:
        """Judge everything from now on."""
        self.asked.note(judged=False)
        for group in self.world.seen(SCENARIO_GROUPS):
            name, wanted = scenario_name(group), self.asked.counts(scenario_name(group))
            pods = instances_of(self.world, group)
            if wanted and len(pods) == wanted.total("prefill") + wanted.total("decode"):
                self.complete_at_start[name] = wanted
        self._routed = {key: frozenset(ids) for key, ids in self._tables()}
        self.active = True

    def trouble(self, seconds: float) -> None:
        """Expect nothing of the operator for so many virtual seconds.

        It is cut off, dead or misled.
        """
        self.trouble_until = max(self.trouble_until, self._time() + seconds)

    def tick(self) -> None:
        """Check once a virtual second what no single write shows.

        Raises:
            Violation: a promise is broken.
        """
        if not self.active or self._time() < self.trouble_until + LAG:
            self._gone.clear()
            self.owed.clear()
            return
        for (namespace, slot), since in self.owed.items():
            if self._time() - since > REPAIR_LAG:
                raise Violation(
                    10, f"{namespace}/{slot} has no successor {REPAIR_LAG:.0f} s after its fault"
                )
        for (namespace, service), ids in self._tables():
            for name in ids:
                self._check_serves(namespace, service, name)

    # --- writes ------------------------------------------------------------------------------

    def wrote(self, request: KubeRequest, before: Object | None, answer: Object) -> None:
        """Judge one write of the operator, after it took effect.

        Raises:
            Violation: it breaks a promise.
        """
        if not self.active or self.found is not None:
            return
        self.writes.append(line_of(request))
        try:
            self._judge(request, before, answer)
        except Violation as violation:
            self.found = violation

    def _judge(self, request: KubeRequest, before: Object | None, answer: Object) -> None:
        resource = request.resource
        if before is not None and before["metadata"].get("uid") in self.foreign:
            raise Violation(9, f"{line_of(request)}: the object is not the operator's")
        if resource == PODS and request.verb == "create":
            self._pod_made(answer)
        elif resource == PODS and before is not None and names.LABEL_ROLE in labels_of(before):
            if request.verb == "delete":
                self._pod_deleted(before)
            elif drain_begins(before, answer):
                self._drained[before["metadata"]["uid"]] = self._time()
                self._given_up(before, "drained")
        elif resource == CONFIGMAPS and request.verb != "delete":
            self._table_written(answer)
        elif resource == SCENARIO_GROUPS:
            if self.metrics_are_false:
                self._check_no_decision(before, answer)
            self.asked.note()

    def _pod_made(self, pod: Object) -> None:
        meta = pod["metadata"]
        self.owed.pop((meta["namespace"], names.slot_of(meta["name"])), None)
        group = group_of(self.world, pod)
        if group is not None:
            name = scenario_name(group)
            self.made[name] = self.made.get(name, 0) + 1
            self._check_missing(pod, group, name)

    def _check_missing(self, pod: Object, group: Object, name: ScenarioName) -> None:
        """A new pod stands for a missing one: of its role and group, as many as are wanted are not
        well or about to be. Those on cordoned nodes may have stand-ins.
        """
        in_force = self.asked.lately(name, self._lag_since())
        if self.trouble_until > self._time() - LAG or not in_force or not self._service_has(name):
            return
        place = place_of(pod)
        others = [
            p["metadata"]["name"] for p in instances_of(self.world, group)
            if place_of(p) == place and p["metadata"]["uid"] != pod["metadata"]["uid"]
            and (healthy(self.world, p) or starts(self.world, p))
            and p["metadata"]["uid"] not in self.harmed
            and not is_cordoned(self.world, p)
            and names.ANNOTATION_DRAIN not in p["metadata"].get("annotations", {})
        ]  # fmt: skip
        role = labels_of(pod)[names.LABEL_ROLE]
        wanted = max(c.prefill if role == "prefill" else c.decode for c in in_force)
        if role == "decode":
            wanted += max(self.asked.spares_lately(name, self._lag_since()), default=0)
        if len(others) >= wanted:
            raise Violation(
                4, f"pod {pod['metadata']['name']} made although {', '.join(others)} "
                f"are there and {wanted} {role} wanted",
            )  # fmt: skip

    def _pod_deleted(self, pod: Object) -> None:
        meta = pod["metadata"]
        drained = self._drained.get(meta["uid"])
        if drained is None:
            self._given_up(pod, "deleted")
        engine = engine_of(self.world, pod)
        if not healthy(self.world, pod) or engine is None or not engine.busy:
            return
        since = "before" if drained is None else f"{self._time() - drained:.0f} s after"
        if drained is None or self._time() - drained < DRAIN_SECONDS - 1.0:
            raise Violation(
                5, f"pod {meta['name']} deleted {since} its drain began, with {engine.busy} "
                "requests running",
            )  # fmt: skip

    def _given_up(self, pod: Object, how: str) -> None:
        """A pod leaves service by the operator's will: is that what a plan or a user asked for?"""
        meta = pod["metadata"]
        if not healthy(self.world, pod) or meta["uid"] in self.harmed:
            return
        group = group_of(self.world, pod)
        if group is None or "deletionTimestamp" in group["metadata"]:
            return
        name = scenario_name(group)
        if not self._service_has(name):
            return
        # What the operator began before a roll was taken back may still be seen.
        settled = self.asked.revision_since(name) <= self._time() - LAG
        if settled and labels_of(pod).get(names.LABEL_REVISION) == current_revision(group):
            self._check_surplus(pod, group, name, how)
        self._check_others_serve(pod, group, name, how)

    def _check_surplus(self, pod: Object, group: Object, name: ScenarioName, how: str) -> None:
        in_force = self.asked.lately(name, self._lag_since())
        spares = min(self.asked.spares_lately(name, self._lag_since()), default=0)
        if any(self._is_surplus(pod, group, counts, spares) for counts in in_force):
            return
        wanted = ", ".join(map(str, in_force))
        raise Violation(
            13, f"healthy pod {pod['metadata']['name']} {how} although {wanted or 'it'} is wanted"
        )

    def _lag_since(self) -> float:
        """The operator may still act on what was in force after this moment; -1: at any time."""
        since = self._time() - LAG
        return -1.0 if self.trouble_until > since else since

    def _is_surplus(self, pod: Object, group: Object, counts: Counts, spares: int) -> bool:
        staying = [
            p for p in instances_of(self.world, group)
            if "deletionTimestamp" not in p["metadata"]
            and names.ANNOTATION_DRAIN not in p["metadata"].get("annotations", {})
        ]  # fmt: skip
        staying = [p for p in staying if p["metadata"]["uid"] != pod["metadata"]["uid"]] + [pod]
        indexes = {labels_of(p).get(names.LABEL_GROUP_INDEX) for p in staying}
        current = current_revision(group)
        if len(indexes) > counts.groups:
            outdated = any(
                labels_of(p).get(names.LABEL_REVISION) != current and not healthy(self.world, p)
                for p in staying
            )
            return not outdated
        mine = labels_of(pod)
        same = [
            p for p in staying
            if labels_of(p).get(names.LABEL_GROUP_INDEX) == mine.get(names.LABEL_GROUP_INDEX)
            and labels_of(p).get(names.LABEL_ROLE) == mine.get(names.LABEL_ROLE)
        ]  # fmt: skip
        prefill = mine.get(names.LABEL_ROLE) == "prefill"
        return len(same) > (counts.prefill if prefill else counts.decode + spares)

    def _check_others_serve(self, pod: Object, group: Object, name: ScenarioName, how: str) -> None:
        mine = labels_of(pod).get(names.LABEL_GROUP_INDEX)
        if mine not in self._serving_groups(group, pod):
            return
        left = self._serving_groups(group, pod, without=pod["metadata"]["uid"])
        if not left:
            raise Violation(
                3, f"pod {pod['metadata']['name']} {how}: no P/D group of {'/'.join(name)} "
                "serves any more",
            )  # fmt: skip

    def _serving_groups(self, group: Object, was: Object, without: str = "") -> set[str]:
        """Indexes of P/D groups with a healthy, routed prefill and decode of one revision.

        One pod counts as it `was` before the write that is judged; one that the schedule broke
        or a user deleted a moment ago counts as healthy still.
        """
        namespace, service, _ = scenario_name(group)
        routed = self.world.routed(service, namespace)
        roles: dict[tuple[str, str], set[str]] = {}
        uid = was["metadata"]["uid"]
        lately = {
            uid: pod for uid, (moment, pod) in self.deleted.items()
            if self._time() < moment + LAG and group_of(self.world, pod) == group
        }  # fmt: skip
        others = (
            p for p in instances_of(self.world, group)
            if p["metadata"]["uid"] != uid and p["metadata"]["uid"] not in lately
        )  # fmt: skip
        for pod in (*others, was, *lately.values()):
            meta, labels = pod["metadata"], labels_of(pod)
            leaving = "deletionTimestamp" in meta or names.ANNOTATION_DRAIN in meta.get(
                "annotations", {}
            )
            if meta["uid"] == without or leaving:
                continue
            if meta["name"] not in routed and meta["uid"] not in lately:
                continue
            engine = engine_of(self.world, pod)
            broke = max(self.harmed.get(meta["uid"], 0.0), engine.stopped_at if engine else 0.0)
            if meta["uid"] in lately or healthy(self.world, pod) or self._time() < broke + LAG:
                key = (labels[names.LABEL_GROUP_INDEX], labels.get(names.LABEL_REVISION, ""))
                roles.setdefault(key, set()).add(labels[names.LABEL_ROLE])
        return {index for (index, _), found in roles.items() if len(found) == 2}

    def _check_no_decision(self, before: Object | None, after: Object) -> None:
        old = newest_applied_in((before or {}).get("status", {}))
        new = newest_applied_in(after.get("status", {}))
        if new is not None and new != old and new.get("reason") not in _NOT_MEASURED:
            raise Violation(
                6, f"{after['metadata']['name']}: {new.get('reason')} {new.get('from')} -> "
                f"{new.get('to')} decided on false metrics",
            )  # fmt: skip

    # --- tables ------------------------------------------------------------------------------

    def _table_written(self, table: Object) -> None:
        data = table.get("data") or {}
        namespace = table["metadata"].get("namespace", "")
        if names.KEY_PEERS in data:
            listed = json.loads(data[names.KEY_PEERS])["instances"]
            for peer in listed:
                self._check_own(namespace, peer["id"], table["metadata"]["name"])
        if names.KEY_ROUTES not in data:
            return
        routes = json.loads(data[names.KEY_ROUTES])
        key = (namespace, routes["service"])
        ids = frozenset(routed_ids(routes))
        for name in sorted(ids):
            self._check_own(namespace, name, table["metadata"]["name"])
        for name in sorted(ids - self._routed.get(key, frozenset())):
            self._check_newly_routed(namespace, name)
        self._routed[key] = ids

    def _check_own(self, namespace: str, name: str, table: str) -> None:
        pod = self.world.api.store(PODS).objects.get(ObjectKey(namespace, name))
        if pod is None:
            return
        if pod["metadata"]["uid"] in self.foreign or group_of(self.world, pod) is None:
            raise Violation(15, f"{namespace}/{table} names the foreign pod {name}")

    def _check_newly_routed(self, namespace: str, name: str) -> None:
        pod = self.world.api.store(PODS).objects.get(ObjectKey(namespace, name))
        recent = self._time() - LAG
        if self.trouble_until > recent:
            return
        if pod is None or pod["metadata"]["uid"] in self.harmed:
            return
        engine = engine_of(self.world, pod)
        if engine is None or engine.spoil is not None:
            return
        # Of a container that restarts while the table is written the operator hears afterwards;
        # `_check_serves` judges those that stay.
        restarts = self._time() < engine.restarted_at + ROUTED_LAG
        if not engine.linked_once and not restarts:
            raise Violation(1, f"{name} is routed, but has never linked")

    def _check_serves(self, namespace: str, service: str, name: str) -> None:
        """A routed instance runs, and the process that runs has linked."""
        pod = self.world.api.store(PODS).objects.get(ObjectKey(namespace, name))
        key = (namespace, service, name)
        alive = pod is not None and pod.get("status", {}).get("phase") == "Running"
        engine = engine_of(self.world, pod) if pod is not None and alive else None
        linked = engine is None or engine.linked_once or engine.spoil is not None
        if alive and linked:
            self._gone.pop(key, None)
            return
        since = self._gone.setdefault(key, self._time())
        if self._time() - since > ROUTED_LAG:
            how = "its container restarted unlinked" if alive else "it ended"
            raise Violation(1, f"{name} is routed {ROUTED_LAG:.0f} s after {how}")

    def _tables(self) -> Iterable[tuple[tuple[str, str], list[str]]]:
        for service in self.world.seen(PDSERVICES):
            meta = service["metadata"]
            routes = self.world.routes(meta["name"], meta["namespace"])
            yield (meta["namespace"], meta["name"]), routed_ids(routes)

    def _service_has(self, name: ScenarioName) -> bool:
        found = self.world.api.store(PDSERVICES).objects.get(ObjectKey(name[0], name[1]))
        scenarios = (found or {}).get("spec", {}).get("scenarios", ())
        return any(s["name"] == name[2] for s in scenarios)

    def _time(self) -> float:
        return asyncio.get_running_loop().time()


_NOT_MEASURED = ("BoundsChanged", "FixedCounts", "InitialCounts", "ExternalOwner")
"""Reasons of decisions that no metric led to."""
