"""Who owns which field of a ScenarioGroup, so that a change of ratio mode drops nothing.

The operator applies (server-side) as two field managers:

* `SPEC_MANAGER` everything but the three counts, always;
* `COUNTS_MANAGER` the three counts, all together and with force, in modes Auto, Advise and Fixed.

In mode External the second one just stops: what it applied last stays, because an owner's field
goes only when that owner applies without it; an autoscaler's write to `/scale` takes the field
over. Back in Auto its next apply, with force, takes all three again. Were the counts part of one
apply, leaving them out in External would delete them (Kubernetes server-side apply semantics).
"""

from __future__ import annotations

from pdserve.api.custom_resource import API_VERSION
from pdserve.api.scenariogroup import DecisionCounts, ScenarioGroup, ScenarioGroupSpec
from pdserve.frozen import Memo
from pdserve.terms.json import JsonObject

SPEC_MANAGER = "pdserve"
COUNTS_MANAGER = "pdserve-counts"


def spec_apply(group: ScenarioGroup) -> JsonObject:
    """Body that `SPEC_MANAGER` applies: metadata and spec of `group` without counts.

    The three counts (`replicas`, `prefill.replicas`, `decode.replicas`) are left out, so applying
    it takes no ownership of them.
    """
    metadata = group.metadata.to_dict()
    kept = ("name", "namespace", "uid", "labels", "annotations", "ownerReferences")
    return {
        "apiVersion": API_VERSION,
        "kind": group.kind,
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "spec": _without_counts(group.spec),
    }


def counts_apply(name: str, namespace: str, uid: str, counts: DecisionCounts) -> JsonObject:
    """Body that `COUNTS_MANAGER` applies to an existing ScenarioGroup: its three counts alone.

    `uid` is that of the group: where another object has taken the name, the API server refuses it.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": "ScenarioGroup",
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
        "spec": {
            "replicas": counts.groups,
            "prefill": {"replicas": counts.prefill},
            "decode": {"replicas": counts.decode},
        },
    }


def same_spec(live: ScenarioGroup, wanted: ScenarioGroup) -> bool:
    """Whether applying `wanted` as `SPEC_MANAGER` would leave the spec of `live` as it is.

    Both ways: a field that `wanted` no longer has is a difference too. Counts do not matter.
    """
    return _without_counts(live.spec) == _without_counts(wanted.spec)


_applied: Memo[JsonObject] = Memo(most=1024)


def _without_counts(spec: ScenarioGroupSpec) -> JsonObject:
    def make() -> JsonObject:
        made = spec.to_dict()
        for holder in (made, made["prefill"], made["decode"]):
            holder.pop("replicas", None)
        return made

    return _applied.of(make, spec)
