"""Reconciles one PDService: its ScenarioGroups and their counts, token, gateway, route table.

1. Would the cluster take the pods (`admission`)? Asked once per generation.
2. Token, then each scenario's ScenarioGroup and its counts (`counts`); skipped while the template
   is refused, so that what serves goes on as it is.
3. Route table: what is linked and ready, written when its content changed. Then ScenarioGroups
   of scenarios that are no longer in the spec are deleted: gateways have let go of them.
4. Gateway objects, and the status.

A stranger's object of a needed name is refused with a condition and an Event; the rest goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from pdserve.api import InvalidObjectError, PDService, Scenario, ScenarioGroup
from pdserve.api.ownership import COUNTS_MANAGER, counts_apply, same_spec
from pdserve.api.scenariogroup import DecisionCounts as ApiCounts
from pdserve.controllers.service.admission import ask_cluster
from pdserve.controllers.shared import event_reasons as reasons
from pdserve.controllers.shared import refusals
from pdserve.controllers.shared.caches import BY_SERVICE, PDSERVICES, SCENARIO_GROUPS, owned_by
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.decision_writer import write_decision
from pdserve.controllers.shared.group_view import domain_of, view_group
from pdserve.controllers.shared.owned import ensure
from pdserve.controllers.shared.parsed import parsed
from pdserve.controllers.shared.profiles import prefill_prediction, profile_of
from pdserve.controllers.shared.refusals import InvalidObject
from pdserve.controllers.shared.rotation import asked_rotation, rotate
from pdserve.controllers.shared.skipped import read_each
from pdserve.controllers.shared.triggers import service_key
from pdserve.desired import decisions, troubles
from pdserve.desired.compare import covers
from pdserve.desired.counts import REASON_INITIAL, CountsPlan, plan_counts
from pdserve.desired.group_wanted import models_of, slots_of
from pdserve.desired.network_policy import network_policies, policy_names
from pdserve.desired.objects import gateway_name, gateway_objects, owned_metadata
from pdserve.desired.ratio_input import first_counts
from pdserve.desired.routing import (
    parse_routes,
    prompt_bytes_of,
    route_table,
    unnamed,
    version_floor,
)
from pdserve.desired.service_credentials import BadSecret
from pdserve.desired.service_desired import (
    acting_counts,
    counts_observed,
    scenario_group,
)
from pdserve.desired.service_status import Attainment, ServiceSeen, status_of
from pdserve.desired.templates import CONDITION, template_of_service
from pdserve.desired.troubles import Trouble
from pdserve.engines.pods_template import TemplateError
from pdserve.frozen import Memo
from pdserve.groups.health import condition
from pdserve.groups.routable import routable
from pdserve.groups.types import ConditionState
from pdserve.kube.cache import Cache
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import NotOursError, is_controlled_by, owner_reference
from pdserve.kube.resource import (
    DEPLOYMENTS,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    ROLE_BINDINGS,
    ROLES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Object,
    ObjectKey,
)
from pdserve.ratio.types import Counts
from pdserve.topology import pod_devices
from pdserve.wire import names
from pdserve.wire.routes import RouteGroup, RouteTable, encoded

_KINDS = {
    r.kind: r
    for r in (
        SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS, DEPLOYMENTS, POD_DISRUPTION_BUDGETS, SERVICES,
    )
}  # fmt: skip


_USERS: Final = ("generation", "annotations", "labels", "deletionTimestamp", "uid")
"""Fields of the metadata that change with what a user changes."""
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
        await self._try(self._network())
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
            return  # What kept it from being made is told already.
        self.credential = held.gateway_fingerprint

    async def _network(self) -> None:
        """Make the NetworkPolicies that are asked for, delete those that no longer are."""
        client, cache = self.context.client, self.context.caches.network_policies
        meta = self.service.metadata
        wanted = network_policies(self.service, self.owner, self.context.operator_namespace)
        for policy in wanted:
            try:
                await ensure(client, cache, policy, _same_spec)
            except KubeError as error:
                if not error.is_invalid:
                    raise
                self.problems.append(("NetworkPolicyRefused", error.message))
        if wanted:
            return
        for name in policy_names(meta.name):
            found = cache.get(name, meta.namespace)
            if found is None or not is_controlled_by(found, meta.uid):
                continue
            await client.delete(
                NETWORK_POLICIES, name, namespace=meta.namespace, uid=found["metadata"]["uid"]
            )
            cache.observe_gone(found)

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
            found = await ask_cluster(self.context.client, self.service, self.owner, rights)
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
        second takes one with a hash. Anybody else's object in the place is refused.
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
            meta = obj["metadata"]
            await self.context.client.delete(
                SCENARIO_GROUPS, meta["name"], namespace=meta["namespace"], uid=meta["uid"]
            )
            self.context.caches.groups.observe_gone(obj)
            note = f"scenario {name} is no longer in spec.scenarios: its P/D groups are deleted"
            self.context.events.event(self.obj, "Normal", reasons.SCENARIO_REMOVED, note)

    # --- routes ----------------------------------------------------------------------------

    async def _routes(self) -> None:
        meta = self.service.metadata
        name = names.routes_configmap_name(meta.name)
        cache: Cache = self.context.caches.config_maps
        known = cache.get(name, meta.namespace)
        if known is not None and not is_controlled_by(known, meta.uid):
            raise NotOursError(cache.resource, known, meta.uid)
        last = parse_routes(known)
        readable, models, prompt_bytes = self._groups(), {}, {}
        groups, predicted = self._unreadable_routes(last, frozenset(readable)), {}
        for scenario, (_, group) in readable.items():
            view = view_group(self.context, group)
            groups[scenario] = routable(view.instances, view.tables, slots_of(view))
            models[scenario] = models_of(view)
            links = self.context.linker.links(ObjectKey(meta.namespace, group.metadata.name))
            prompt_bytes[scenario] = prompt_bytes_of(groups[scenario], links)
            known_profile = prefill_prediction(cache, group, self._usual_prompt(scenario))
            if known_profile is not None:
                predicted[scenario] = known_profile
        domain = domain_of(self.context.caches, self.service.spec.fabric.domain_ref.name)
        table = route_table(
            self.service, domain, groups, predicted, last, version_floor(known), models,
            prompt_bytes,
        )  # fmt: skip
        text = _texts.of(lambda: encoded(table), table)
        wanted = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": owned_metadata(name, meta.namespace, meta.name, self.owner, "route-table"),
            "data": {names.KEY_ROUTES: text},
        }
        await ensure(self.context.client, cache, wanted)

    def _unreadable_routes(
        self, last: RouteTable | None, readable: frozenset[str]
    ) -> dict[str, Sequence[RouteGroup]]:
        """What gateways have of scenarios whose ScenarioGroup is there but cannot be read."""
        owned = owned_by(self.context.caches.groups, self.service.metadata)
        there = {name for obj in owned if (name := _scenario_of(obj)) is not None}
        kept = there - readable
        scenarios = last.scenarios if last else ()
        return {s.name: unnamed(s.groups) for s in scenarios if s.name in kept}

    def _usual_prompt(self, scenario: str) -> float:
        found = (s for s in self.service.spec.scenarios if s.name == scenario)
        return next((float(s.expected.prompt_tokens) for s in found), 1.0)

    # --- status ----------------------------------------------------------------------------

    async def _write_status(self, template: ConditionState) -> None:
        meta = self.service.metadata
        groups = {name: group for name, (_, group) in self._groups().items()}
        seen = ServiceSeen(
            service=self.service,
            groups=groups,
            used=self._devices_used(groups),
            template=template,
            rotated=self.rotated,
            problems=self.problems,
            gateway_ready=self._gateways_ready(),
            attainment=self._attainment(groups),
            troubles=await self._troubles(groups),
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
        with self._unless_only_status(live):
            self.context.caches.services.observe(live)

    def _unless_only_status(self, live: Object) -> AbstractContextManager[None]:
        """No second look at what this one wrote, unless a change of the user came with it."""
        before, after = self.obj["metadata"], live["metadata"]
        if any(before.get(field) != after.get(field) for field in _USERS):
            return nullcontext()
        return self.context.queue.ignoring(service_key(after["namespace"], after["name"]))

    def _devices_used(self, groups: dict[str, ScenarioGroup]) -> dict[str, int]:
        used: dict[str, int] = {}
        for group in groups.values():
            for pod in owned_by(self.context.caches.pods, group.metadata):
                for resource, count in pod_devices(pod).items():
                    used[resource] = used.get(resource, 0) + count
        return used

    def _gateways(self) -> tuple[Object, ...]:
        key = (self.service.metadata.namespace, self.service.metadata.name)
        return self.context.caches.pods.by_index(BY_SERVICE, key)

    def _gateways_ready(self) -> int:
        return sum(
            condition(pod, "Ready").get("status") == "True"
            and not pod["metadata"].get("deletionTimestamp")
            for pod in self._gateways()
        )

    async def _troubles(self, groups: dict[str, ScenarioGroup]) -> list[Trouble]:
        caches, meta = self.context.caches, self.service.metadata
        found: list[Trouble] = []
        for _, group in sorted(groups.items()):
            found += troubles.of_instances(owned_by(caches.pods, group.metadata))
            found += troubles.of_repairs(group, self.context.now())
        deployment = caches.deployments.get(gateway_name(meta.name), meta.namespace)
        found += troubles.of_gateways(self._gateways(), deployment)
        auth = self.service.spec.gateway.auth
        if auth is not None and not self._gateways_ready():
            # The kubelet says in an Event only that a volume's Secret is not there.
            found += await self._missing(auth.secret_ref.name)
        return found

    async def _missing(self, secret: str) -> list[Trouble]:
        try:
            await self.context.client.get(SECRETS, secret, self.service.metadata.namespace)
        except KubeError as error:
            if not error.is_not_found:
                raise
            message = f"gateway.auth.secretRef: there is no Secret {secret!r}"
            return [Trouble(troubles.SECRET_MISSING, message)]
        return []

    def _attainment(self, groups: dict[str, ScenarioGroup]) -> dict[str, Attainment]:
        namespace = self.service.metadata.namespace
        found = {
            name: self.context.attainment.get(ObjectKey(namespace, group.metadata.name))
            for name, group in groups.items()
        }
        return {name: a for name, a in found.items() if a is not None}


def _same_spec(live: Object, wanted: Object) -> bool:
    """Metadata as wanted, and the spec both ways: a rule taken out is a change."""
    return covers(live, wanted) and bool(live["spec"] == wanted["spec"])


def _scenario_of(obj: Object) -> str | None:
    spec = obj.get("spec")
    name = spec.get("scenario") if isinstance(spec, dict) else None
    return name if isinstance(name, str) and "deletionTimestamp" not in obj["metadata"] else None


_wanted: Memo[ScenarioGroup] = Memo(most=1024)
_texts: Memo[str] = Memo(most=256)


def _same_group(live: Object, wanted: Object) -> bool:
    """Labels and owner as wanted, and the spec both ways: a field taken out is a change."""
    if not covers(live, wanted):
        return False
    try:
        group = _wanted.of(lambda: ScenarioGroup.parse(wanted), wanted)
        return same_spec(parsed(ScenarioGroup, live), group)
    except InvalidObjectError:
        return False
