"""What a PDService wants to exist for each scenario, as manifests. Pure.

The ScenarioGroup is applied in two parts (`api.ownership` says why): here everything but the
counts, which `counts` decides.
"""

from __future__ import annotations

from typing import Final

from pdserve.api import PDService, Scenario, ScenarioGroup
from pdserve.api.pdservice import PDServiceSpec
from pdserve.api.scenariogroup import ScenarioGroupSpec
from pdserve.desired import decisions
from pdserve.desired.counts import CountsObserved, counts_in_force
from pdserve.desired.objects import owned_metadata
from pdserve.frozen import Memo
from pdserve.ratio.types import Bounds, Counts, Range
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names

COMPONENT: Final = "scenario-group"


def scenario_group(
    service: PDService, scenario: Scenario, owner: JsonMap, name: str = ""
) -> JsonObject:
    """The ScenarioGroup of one scenario, without counts; `name` where it is not the usual one.

    The same object for the same spec, not to be changed.
    """
    meta = service.metadata
    by = (meta.namespace, meta.name, name, *sorted(owner.items()))
    return _groups.of(
        lambda: _scenario_group(service, scenario, owner, name), service.spec, scenario, by=by
    )


_groups: Memo[JsonObject] = Memo()


def _scenario_group(
    service: PDService, scenario: Scenario, owner: JsonMap, name: str
) -> JsonObject:
    spec = service.spec
    name = name or names.scenario_group_name(service.metadata.name, scenario.name)
    meta = owned_metadata(name, service.metadata.namespace, service.metadata.name, owner, COMPONENT)
    meta["labels"][names.LABEL_SCENARIO] = scenario.name
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ScenarioGroup",
        "metadata": meta,
        "spec": {
            "service": service.metadata.name,
            "scenario": scenario.name,
            "model": spec.model.to_dict(),
            "engine": spec.engine.to_dict(),
            "prefill": spec.prefill.to_dict(),
            "decode": spec.decode.to_dict(),
            "fabric": spec.fabric.to_dict(),
            "recovery": spec.recovery.to_dict(),
            **({"profile": spec.profile} if spec.profile is not None else {}),
            **({"spares": scenario.spares} if scenario.spares else {}),
            "rollout": spec.rollout.to_dict(),
        },
    }


def is_as_asked(group: ScenarioGroup, service: PDService) -> bool:
    """Whether pods of the ScenarioGroup are those that its PDService asks for now.

    True also while the PDService asks for something that is not accepted (yet): the ScenarioGroup
    then keeps what it was last given.
    """
    ours = any(
        c.type == "TemplateValid" and c.status == "True"
        and c.observed_generation == service.metadata.generation
        for c in service.status.conditions
    )  # fmt: skip
    return not ours or _same_pods(group.spec, service.spec)


_compared: Memo[bool] = Memo()


def _same_pods(one: ScenarioGroupSpec, other: PDServiceSpec) -> bool:
    return _compared.of(lambda: _of_pods(one) == _of_pods(other), one, other)


def _of_pods(spec: ScenarioGroupSpec | PDServiceSpec) -> tuple[object, ...]:
    roles = (spec.prefill, spec.decode)
    parts = [r.model_dump(exclude={"replicas", "startup_deadline_seconds"}) for r in roles]
    return (spec.model, spec.engine, spec.fabric.domain_ref, *parts)


def bounds_of(scenario: Scenario) -> Bounds:
    """What the owner of the model allows."""
    ratio = scenario.ratio
    return Bounds(
        Range(scenario.groups.min, scenario.groups.max),
        Range(ratio.prefill.min, ratio.prefill.max),
        Range(ratio.decode.min, ratio.decode.max),
    )


def fixed_of(scenario: Scenario) -> Counts | None:
    """The counts of mode Fixed, if given."""
    fixed = scenario.ratio.fixed
    return None if fixed is None else Counts(fixed.groups, fixed.prefill, fixed.decode)


def acting_counts(group: ScenarioGroup, scenario: Scenario | None, *, owned: bool) -> Counts | None:
    """The counts that plans for `group` follow; None while there are none.

    Args:
        group: the live ScenarioGroup.
        scenario: of the PDService that made it; None while that cannot be read.
        owned: whether a PDService made it. One written by hand follows its own spec.
    """
    return _acting.of(lambda: _acting_counts(group, scenario, owned), group, scenario, by=owned)


_acting: Memo[Counts | None] = Memo()


def _acting_counts(group: ScenarioGroup, scenario: Scenario | None, owned: bool) -> Counts | None:
    live, last = decisions.live_counts(group), decisions.newest_applied(group)
    applied = None if last is None else decisions.counts_of(last)
    if not owned:
        return live
    if scenario is None:
        return applied or live
    pair = None if last is None else (decisions.counts_before(last), decisions.counts_of(last))
    lowest = bounds_of(scenario).clamp(Counts(0, 0, 0))
    return counts_in_force(counts_observed(scenario, lowest, live, pair))


def counts_observed(
    scenario: Scenario,
    initial: Counts,
    live: Counts | None,
    applied: tuple[Counts, Counts] | None,
) -> CountsObserved:
    """What the counts of one scenario are decided on; `applied` is `(from, to)`."""
    return CountsObserved(
        mode=scenario.ratio.mode,
        bounds=bounds_of(scenario),
        fixed=fixed_of(scenario),
        initial=initial,
        live=live,
        applied=None if applied is None else applied[1],
        applied_from=None if applied is None else applied[0],
    )
