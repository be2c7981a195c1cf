"""What an instance demands of its node, read from the very pod that would be POSTed. Pure.

Rendering knows what a template adds; the same function reads what pods in the cache take
(`topology.requests`). So placement reckons with what the scheduler will, but for what the API
server adds on admission: a LimitRange's defaults, the overhead of a RuntimeClass.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.api import RoleTemplate, ScenarioGroup
from pdserve.engines.pods import EngineUnusableError, render_pod, role_template
from pdserve.frozen import Memo
from pdserve.groups.types import NewPod
from pdserve.terms import Role
from pdserve.terms.json import JsonObject
from pdserve.topology import Toleration, pod_requests
from pdserve.topology.affinity import Term, demanded


@dataclass(frozen=True, slots=True)
class PodDemand:
    """Of one instance."""

    takes: tuple[tuple[str, int], ...]
    """Its devices and all else, by resource, as `topology.requests` counts them."""
    requests: tuple[tuple[str, int], ...]
    """The same without the devices of the role."""
    tolerations: tuple[Toleration, ...]
    selector: frozenset[Term] | None
    """What it demands of its node's labels; None: nothing."""


_kept: Memo[PodDemand] = Memo()


def demand_of(group: ScenarioGroup, role: Role, revision: str) -> PodDemand:
    """What an instance of `role` demands; `revision` is that of the group's spec. No errors.

    A template of which no pod can be made counts as none: condition TemplateValid tells.
    """
    return _kept.of(lambda: _read(group, role, revision), group.spec, by=(role, revision))


def _read(group: ScenarioGroup, role: Role, revision: str) -> PodDemand:
    template = role_template(group, role)
    try:
        return _of(_pod(group, role, revision), template)
    except EngineUnusableError:
        devices = template.instance.resource, template.instance.devices_per_node
        return PodDemand((devices,), (), (), None)
    except (AttributeError, KeyError, TypeError, ValueError):
        plain = template.model_copy(update={"template": None})
        spec = group.spec.model_copy(update={role: plain})
        return _of(_pod(group.model_copy(update={"spec": spec}), role, revision), plain)


def _pod(group: ScenarioGroup, role: Role, revision: str) -> JsonObject:
    return render_pod(group, NewPod("sample", "sample", role, 0, revision, ""), {}, None)


def _of(pod: JsonObject, template: RoleTemplate) -> PodDemand:
    takes = tuple(pod_requests(pod).items())
    return PodDemand(
        takes,
        tuple((r, n) for r, n in takes if r != template.instance.resource),
        tuple(Toleration.from_json(t) for t in pod["spec"]["tolerations"]),
        demanded(pod["spec"]),
    )
