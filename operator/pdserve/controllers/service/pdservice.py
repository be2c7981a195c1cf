"""Reconciles one PDService: its ScenarioGroups and their counts, token, gateway, route table.

1. Check once per generation whether the cluster takes the pods (`admission`).
2. Token, then each scenario's ScenarioGroup and its counts (`counts`); skipped while the template
   is refused, so that what serves goes on as it is.
3. Route table: what is linked and ready, written when its content changed. Then ScenarioGroups
   of scenarios that are no longer in the spec are deleted: gateways no longer route to them.
4. Gateway objects, and the status.

If a needed name belongs to a foreign object, a condition and an Event say so; the rest goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from pdserve.api import InvalidObjectError, PDService, Scenario, ScenarioGroup
from pdserve.api.ownership import COUNTS_MANAGER, counts_apply, same_spec
from pdserve.api.scenariogroup import DecisionCounts as ApiCounts
from pdserve.controllers.service.admission import ask_cluster
from pdserve.controllers.service.policies import keep_policies
from pdserve.controllers.service.route_writer import write_routes
from pdserve.controllers.service.seen import (
    all_gateways_ready,
    attainment_by_scenario,
    devices_used,
    gateways_ready,
    troubles_of,
)
from pdserve.controllers.shared import event_reasons as reasons
from pdserve.controllers.shared import refusals
from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS, owned_by
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.decision_writer import write_decision
from pdserve.controllers.shared.own_status import observe_own_status
from pdserve.controllers.shared.owned import delete_owned, ensure
from pdserve.controllers.shared.parsed import parsed
from pdserve.controllers.shared.profiles import profile_of
from pdserve.controllers.shared.refusals import InvalidObject
from pdserve.controllers.shared.rotation import asked_rotation, rotate
from pdserve.controllers.shared.skipped import read_each
from pdserve.controllers.shared.triggers import service_key
from pdserve.desired import decisions
from pdserve.desired.compare import covers
from pdserve.desired.counts import REASON_INITIAL, CountsPlan, plan_counts
from pdserve.desired.objects import gateway_objects
from pdserve.desired.ratio_input import first_counts
from pdserve.desired.service_credentials import BadSecret
from pdserve.desired.service_desired import acting_counts, counts_observed, scenario_group
from pdserve.desired.service_status import ServiceSeen, status_of
from pdserve.desired.templates import CONDITION, template_of_service
from pdserve.engines.template_errors import TemplateError
from pdserve.frozen import Memo
from pdserve.groups.types import ConditionState
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import NotOursError, owner_reference
from pdserve.kube.resource import (
    DEPLOYMENTS,
    POD_DISRUPTION_BUDGETS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    SERVICES,
    Object,
    ObjectKey,
)
from pdserve.ratio.types import Counts
from pdserve.wire import names

_KINDS = {
    r.kind: r
    for r in (
        SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS, DEPLOYMENTS, POD_DISRUPTION_BUDGETS, SERVICES,
    )
}  # fmt: skip


REFUSED_RETRY: Final = 10.0
"""Seconds until what was refused is tried again: what stood in the way may have gone."""
_REFUSALS: Final = frozenset({400, 403, 413, 422})
"""HTTP statuses that say "not this": quota, admission, size, an invalid object."""


async def reconcile_service(context: OperatorContext, key: ObjectKey) -> float | None:
    """Bring one PDService nearer to its spec.

    Raises:
        InvalidObject: today's rules refuse it.
        KubeError: to be retried with backoff.
    """
    obj = context.caches.services.get(key.name, key.namespace)
    if obj is None or obj["metadata"].get("deletionTimestamp"):
        return None
    try:
        service = parsed(PDService, obj)
    except InvalidObjectError as error:
        raise InvalidObject(str(error)) from error
    reconcile = _Reconcile(context, obj, service)
    template = await reconcile.run()
    refused = reconcile.problems or template.status == "False"
    return REFUSED_RETRY if refused else None


class _Reconcile:
    def __init__(self, context: OperatorContext, obj: Object, service: PDService) -> None:
        self.context = context
        self.obj = obj
        self.service = service
        self.owner = owner_reference(obj)
        self.problems: list[tuple[str, str]] = []
        self.credential = ""
        """Fingerprint of what gateways send."""
        self.rotated: ConditionState | None = None
        self.failure: Exception | None = None
        self._owned: tuple[Object, ...] = ()
        self._by_scenario: dict[str, tuple[Object, ScenarioGroup]] = {}
        """`_groups` as long as `_owned` are its ScenarioGroups."""

    async def run(self) -> ConditionState:
        """Do all of it; returns the condition TemplateValid."""
        # 1
        template = await self._template()
        # 2
        namespace, name = self.service.metadata.namespace, self.service.metadata.name
        asked = asked_rotation(self.obj)
        if not all_gateways_ready(self.context, self.service):
            # They may wait for a deleted Secret; Secrets are not watched.
            self.context.tokens.look_again(f"{namespace}/{name}", self.service.metadata.uid)
        ours = await self._try(self.context.tokens.ensure(namespace, name, self.owner, asked))
        # Pods are given Secrets by the service's name: never those of another owner.
        if template.status == "True" and ours:
            for scenario in self.service.spec.scenarios:
                await self._try(self._scenario(scenario))
        # 3
        await self._try(self._routes())
        await self._try(self._delete_left_over())
        # 4
        await self._try(self._credentials())
        for wanted in self._gateway():
            cache = self.context.caches.of(_KINDS[wanted["kind"]])
            await self._try(ensure(self.context.client, cache, wanted))
        await self._try(self._policies())
        await self._write_status(template)
        if self.failure is not None:
            raise self.failure
        return template

    def _gateway(self) -> tuple[Object, ...]:
        """Its objects; none while its template is refused, which TemplateValid tells."""
        image, rights = self.context.gateway_image, self.context.rights
        try:
            return gateway_objects(self.service, image, self.owner, self.credential, rights)
        except TemplateError:
            return ()

    async def _try(self, step: Awaitable[object]) -> bool:
        """What is refused, or fails by itself, does not keep the other steps from being done.

        False where an object of another owner has the name.

        Raises:
            KubeError: there may be no use in going on: no answer, a conflict, a server's error.
        """
        try:
            await step
        except NotOursError as error:
            self.problems.append(("ObjectRefused", str(error)))
            self.context.metrics.refusals.labels(error.resource.kind).inc()
            self.context.events.event(self.obj, "Warning", reasons.REFUSED, str(error))
            return False
        except BadSecret as error:
            self.problems.append(("SecretUnreadable", str(error)))
        except KubeError as error:
            if error.status not in _REFUSALS:
                raise
            self.problems.append(("WriteRefused", error.message))
            self.context.events.event(self.obj, "Warning", reasons.WRITE_REFUSED, error.message)
        except Exception as error:
            self.problems.append((refusals.FAILED, refusals.text_of(error)))
            self.failure = self.failure or error
        return True

    async def _credentials(self) -> None:
        """Go on with a rotation, and say how far it is."""
        meta = self.service.metadata
        try:
            self.rotated = await rotate(self.context, self.obj, self.service, self.owner)
            held = await self.context.tokens.get(f"{meta.namespace}/{meta.name}")
        except KubeError as error:
            if not error.is_not_found:
                raise
            return  # What kept it from being made is reported already.
        self.credential = held.gateway_fingerprint

    async def _routes(self) -> None:
        await write_routes(self.context, self.service, self.owner, self._readable())

    async def _policies(self) -> None:
        self.problems += await keep_policies(self.context, self.service, self.owner)

    async def _template(self) -> ConditionState:
        rights, known = self.context.rights, None
        for last in self.service.status.conditions:
            current = last.observed_generation == self.service.metadata.generation
            if last.type == CONDITION and current and last.status != "Unknown":
                known = ConditionState(CONDITION, last.status, last.reason, last.message)
        found = template_of_service(self.service, self.owner, rights)
        if found.status == "True":
            # What the cluster accepted it is not asked again. A refusal may be about an object that
            # exists by now (a PriorityClass), and what we say ourselves can change.
            if known is not None and known.status == "True":
                return known
            client, settings = self.context.client, self.context.pod_settings
            found = await ask_cluster(client, self.service, self.owner, rights, settings)
        if found.status == "False" and found != known:
            self.context.events.event(self.obj, "Warning", reasons.TEMPLATE, found.message)
        return found

    # --- scenarios -------------------------------------------------------------------------

    async def _scenario(self, scenario: Scenario) -> None:
        wanted = scenario_group(self.service, scenario, self.owner, self._group_name(scenario))
        live = await ensure(self.context.client, self.context.caches.groups, wanted, _same_group)
        if live["metadata"].get("deletionTimestamp"):
            return
        group = parsed(ScenarioGroup, live)
        applied = decisions.newest_applied(group)
        counts = decisions.live_counts(group)
        initial = Counts(scenario.groups.min, scenario.ratio.prefill.min, scenario.ratio.decode.min)
        message = ""
        if counts is None and applied is None:
            profile = profile_of(self.context.caches.config_maps, group)
            sizing = first_counts(self.service, scenario, self._others(), profile)
            initial, message = sizing.counts, sizing.message
        pair = None
        if applied is not None:
            pair = (decisions.counts_before(applied), decisions.counts_of(applied))
        plan = plan_counts(counts_observed(scenario, initial, counts, pair))
        await self._apply(live, plan, message)

    def _group_name(self, scenario: Scenario) -> str:
        """The name that its ScenarioGroup has, or a free one.

        The names of two services' scenarios may be the same when they are put together: who comes
        second takes one with a hash. An object of any other owner in the place is refused.
        """
        service = self.service.metadata
        mine = self._groups().get(scenario.name)
        if mine is not None:
            return mine[1].metadata.name
        usual = names.scenario_group_name(service.name, scenario.name)
        held = self.context.caches.groups.get(usual, service.namespace)
        if held is None or held["spec"]["service"] == service.name:
            return usual
        return names.distinct_group_name(service.name, scenario.name)

    async def _apply(self, live: Object, plan: CountsPlan, explanation: str) -> None:
        """Record, then apply: what a crash leaves in between, the next look completes."""
        meta = live["metadata"]
        if plan.record is not None:
            record = plan.record
            sized = explanation and record.reason == REASON_INITIAL
            message = explanation if sized else record.message
            entry = decisions.entry(
                time=self.context.now(),
                before=record.before,
                to=record.to,
                outcome="Applied",
                reason=record.reason,
                message=message,
                inputs={},
            )
            await write_decision(self.context.client, self.context.caches.groups, live, entry)
        if plan.hand_edit is not None:
            self.context.events.event(live, "Warning", reasons.HAND_EDIT, plan.hand_edit)
        if plan.apply is None:
            return
        to = plan.apply
        body = counts_apply(
            meta["name"], meta["namespace"], meta["uid"],
            ApiCounts(groups=to.groups, prefill=to.prefill, decode=to.decode),
        )  # fmt: skip
        written = await self.context.client.apply(
            SCENARIO_GROUPS, body, field_manager=COUNTS_MANAGER, uid=meta["uid"]
        )
        self.context.caches.groups.observe(written)
        self.context.events.event(live, "Normal", reasons.COUNTS, f"counts set to {to}")

    def _groups(self) -> dict[str, tuple[Object, ScenarioGroup]]:
        """Live ScenarioGroups that this PDService controls, by scenario."""

        def read(obj: Object) -> tuple[Object, ScenarioGroup]:
            return obj, parsed(ScenarioGroup, obj)

        caches = self.context.caches
        owned = owned_by(caches.groups, self.service.metadata)
        if owned == self._owned:
            return self._by_scenario
        live = [obj for obj in owned if not obj["metadata"].get("deletionTimestamp")]
        found = read_each(live, read, caches.skipped, "observe")
        self._owned = owned
        self._by_scenario = {group.spec.scenario: (obj, group) for obj, group in found}
        return self._by_scenario

    def _readable(self) -> dict[str, ScenarioGroup]:
        return {name: group for name, (_, group) in self._groups().items()}

    def _others(self) -> dict[str, Counts]:
        listed = {s.name: s for s in self.service.spec.scenarios}
        counts = {
            name: acting_counts(g, listed.get(name), owned=True)
            for name, (_, g) in self._groups().items()
        }
        return {name: c for name, c in counts.items() if c is not None}

    async def _delete_left_over(self) -> None:
        wanted = {s.name for s in self.service.spec.scenarios}
        for name, (obj, _) in sorted(self._groups().items()):
            if name in wanted:
                continue
            await delete_owned(self.context.client, self.context.caches.groups, obj)
            note = f"scenario {name} is no longer in spec.scenarios: its P/D groups are deleted"
            self.context.events.event(self.obj, "Normal", reasons.SCENARIO_REMOVED, note)

    # --- status ----------------------------------------------------------------------------

    async def _write_status(self, template: ConditionState) -> None:
        meta = self.service.metadata
        groups = self._readable()
        seen = ServiceSeen(
            service=self.service,
            groups=groups,
            used=devices_used(self.context, groups),
            template=template,
            rotated=self.rotated,
            problems=self.problems,
            gateway_ready=gateways_ready(self.context, self.service),
            attainment=attainment_by_scenario(self.context, self.service, groups),
            troubles=await troubles_of(self.context, self.service, groups),
        )
        status = status_of(seen, self.context.now())
        live_status = self.obj.get("status") or {}
        if covers(live_status, status) and covers(
            status.get("scenarios"), live_status["scenarios"]
        ):
            return
        live = await self.context.client.patch_status(
            PDSERVICES, meta.name, status,
            namespace=meta.namespace, uid=meta.uid, field_manager=names.FIELD_MANAGER,
        )  # fmt: skip
        key = service_key(meta.namespace, meta.name)
        observe_own_status(self.context.queue, key, self.context.caches.services, self.obj, live)


_wanted: Memo[ScenarioGroup] = Memo(most=1024)


def _same_group(live: Object, wanted: Object) -> bool:
    """Labels and owner as wanted, and the spec both ways: a field taken out is a change."""
    if not covers(live, wanted):
        return False
    try:
        group = _wanted.of(lambda: ScenarioGroup.parse(wanted), wanted)
        return same_spec(parsed(ScenarioGroup, live), group)
    except InvalidObjectError:
        return False
