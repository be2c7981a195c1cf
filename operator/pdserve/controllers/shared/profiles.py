"""Learned performance profiles: one ConfigMap per ScenarioGroup, read for every prediction.

Losing one costs relearning from the seed. Written at most once a minute (`ratio_loop`).
"""

from __future__ import annotations

import logging
from typing import Final

from pdserve.api import RoleTemplate, ScenarioGroup
from pdserve.api.scenariogroup import ScenarioGroupSpec
from pdserve.desired.objects import owned_metadata
from pdserve.frozen import Memo, remembered
from pdserve.kube.cache import Cache
from pdserve.ratio import learn
from pdserve.ratio.learn import LearnState
from pdserve.ratio.model import admission_batch
from pdserve.ratio.presets import preset
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.records import RecordError, from_json, to_json
from pdserve.terms import Slo
from pdserve.terms.json import JsonMap, JsonObject

log = logging.getLogger(__name__)

KEY: Final = "profile.json"
TRUSTED: Final = 0.3
"""Confidence from which gateways predict with the profile."""


def profile_configmap_name(group: str) -> str:
    """Name of the ConfigMap that holds the profile of a ScenarioGroup."""
    return f"{group}-profile"


def fresh_state(group: ScenarioGroup) -> LearnState:
    """Knowing nothing yet. Its key says what a profile is of: model, image, devices, arguments."""
    return _fresh.of(lambda: _start(group.spec), group.spec)


_profiles: Memo[PerformanceProfile | None] = Memo()
_fresh: Memo[LearnState] = Memo()
_resumed: Memo[LearnState] = Memo()


def _start(spec: ScenarioGroupSpec) -> LearnState:
    roles = (
        f"{r.instance.resource}x{r.instance.devices_per_node}{_nodes(r)}:{' '.join(r.args)}"
        for r in (spec.prefill, spec.decode)
    )
    slots = spec.prefill.max_concurrency, spec.decode.max_concurrency
    return learn.start(
        "|".join((spec.model.name, spec.engine.image, *roles)),
        *slots,
        preset=None if spec.profile is None else preset(spec.profile, *slots),
    )


def _nodes(role: RoleTemplate) -> str:
    return f"x{role.instance.nodes}" if role.instance.nodes > 1 else ""


def stored_state(config_maps: Cache, group: ScenarioGroup) -> LearnState:
    """What was learned before, as far as it is of the same thing."""
    fresh = fresh_state(group)
    name = profile_configmap_name(group.metadata.name)
    obj = config_maps.get(name, group.metadata.namespace)
    try:
        stored = None if obj is None else _stored(obj)
        if stored is None:
            return fresh
        return _resumed.of(lambda: learn.resume(stored, fresh), stored, fresh)
    except RecordError as error:
        log.warning("Profile %s/%s is learned anew: %s", group.metadata.namespace, name, error)
        return fresh


@remembered
def _stored(config_map: JsonMap) -> LearnState | None:
    text = (config_map.get("data") or {}).get(KEY)
    return from_json(LearnState, text) if text else None


def profile_in(state: LearnState) -> PerformanceProfile | None:
    """`LearnState.profile`, computed once for each state."""
    return _profiles.of(state.profile, state)


def profile_of(config_maps: Cache, group: ScenarioGroup) -> PerformanceProfile | None:
    """The stored profile, if any."""
    state = stored_state(config_maps, group)
    return profile_in(state)


def profile_object(group: ScenarioGroup, state: LearnState, owner: JsonMap) -> JsonObject:
    """The ConfigMap that stores `state`."""
    meta = owned_metadata(
        profile_configmap_name(group.metadata.name),
        group.metadata.namespace,
        group.spec.service,
        owner,
        "profile",
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta,
        "data": {KEY: to_json(state)},
    }


def prefill_prediction(
    config_maps: Cache, group: ScenarioGroup, prompt_tokens: float
) -> tuple[float, float] | None:
    """`a, b` of T_p ~ a + b * tokens near `prompt_tokens`, in seconds; None until trusted.

    Two significant digits, so that small changes of the profile do not change the route table.
    """
    profile = profile_of(config_maps, group)
    if profile is None or profile.confidence < TRUSTED:
        return None
    prefill = profile.prefill
    # Tangent of a + b*L + c*L^2 at the usual prompt length.
    slope = prefill.per_token + 2 * prefill.per_token_squared * prompt_tokens
    base = max(0.0, prefill.base - prefill.per_token_squared * prompt_tokens**2)
    return float(f"{base:.2g}"), float(f"{slope:.2g}")


def decode_batch(config_maps: Cache, group: ScenarioGroup, slo: Slo) -> int:
    """Most requests that gateways should put on one decode; 0 while it is unknown, or all fit.

    Above 16 in steps of a sixteenth, so that small changes of the profile do not change the route
    table.
    """
    state = stored_state(config_maps, group)
    profile = profile_in(state)
    if profile is None or profile.confidence < TRUSTED or state.context is None:
        return 0
    most = admission_batch(profile, state.context, slo)
    step = max(1, most // 16)
    return 0 if most >= profile.decode_slots else most // step * step
