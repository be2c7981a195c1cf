"""Reconciles one ScenarioGroup: observe (caches only), plan (pure), execute, report.

1. Read the object, its RoCEDomain, its pods and tables; tell the linker which instances to attend
   to.
2. Plan, and promise the devices of pods to be created (`promises`). Nothing else runs between the
   reading of the caches and the promise, so two reconciliations never book one device.
3. Execute in order, however long the API server takes, then write the status if it differs.
4. Wake the PDService when the routable instances differ from those in the gateways' table.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from pdserve.api import InvalidObjectError, PDService, RoCEDomain, Scenario, ScenarioGroup
from pdserve.controllers.group.attending import attend, service_name, wake_service
from pdserve.controllers.group.budgets import keep_budgets, known_budgets
from pdserve.controllers.group.group_actions import CreateRefused, GroupExecutor
from pdserve.controllers.group.known_fabric import known_fabric, recalled_domain
from pdserve.controllers.group.places import prepare_places
from pdserve.controllers.group.template import template_condition
from pdserve.controllers.group.turn import in_turn
from pdserve.controllers.group.waiting import rank_of
from pdserve.controllers.shared import event_reasons as reasons
from pdserve.controllers.shared.caches import SCENARIO_GROUPS
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.domain_overlap import fabric_condition
from pdserve.controllers.shared.group_view import domain_of, view_group
from pdserve.controllers.shared.own_status import observe_own_status
from pdserve.controllers.shared.parsed import parsed
from pdserve.controllers.shared.refusals import InvalidObject
from pdserve.controllers.shared.revisions import keep_revisions
from pdserve.controllers.shared.triggers import group_key
from pdserve.desired.claim_entries import claims_of, to_json
from pdserve.desired.compare import controller_uid, covers
from pdserve.desired.group_status import (
    degraded_condition,
    not_ready,
    ratio_condition,
    status_of,
    waiting_status,
)
from pdserve.desired.group_wanted import (
    ScenarioGroupView,
    former_wanted,
    promised,
    repairs_of,
    wanted_of,
)
from pdserve.desired.rollouts import rollout_state
from pdserve.desired.routing import parse_routes, routed_instances
from pdserve.desired.service_credentials import BadSecret, ServiceCredentials
from pdserve.desired.service_desired import acting_counts, is_as_asked
from pdserve.desired.templates import CONDITION as TEMPLATE_VALID
from pdserve.groups.claims import must_be_recorded_first
from pdserve.groups.plan import plan
from pdserve.groups.types import (
    ConditionState,
    DeviceClaim,
    DisruptionBudget,
    Observation,
    Plan,
    Wanted,
)
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import NotOursError
from pdserve.kube.resource import Object, ObjectKey
from pdserve.placement import GroupRequest
from pdserve.ratio.types import Counts
from pdserve.terms import ROLES
from pdserve.terms.json import JsonMap
from pdserve.topology import Fabric, Reservation, fabric_spec
from pdserve.wire import names
from pdserve.wire.routes import RouteTable

log = logging.getLogger(__name__)

REFUSED_RETRY = 30.0
"""Seconds until refused pods are tried again (quota may have been raised)."""
BLIND_RETRY = 5.0
"""Seconds until the next look while the watch of pods is broken."""
VOLUME_RETRY = 30.0
"""Seconds until a place is looked for again where volumes leave none."""


async def reconcile_group(context: OperatorContext, key: ObjectKey) -> float | None:
    """Bring one ScenarioGroup nearer to its spec; seconds until it wants to be looked at again.

    Raises:
        InvalidObject: today's rules refuse it.
        KubeError: to be retried with backoff.
    """
    obj = context.caches.groups.get(key.name, key.namespace)
    if obj is None or obj["metadata"].get("deletionTimestamp"):
        context.linker.set_targets(key, ())
        return None
    try:
        group = parsed(ScenarioGroup, obj)
    except InvalidObjectError as error:
        raise InvalidObject(str(error)) from error
    return await _Reconcile(context, key, obj, group).run()


class _Reconcile:
    def __init__(
        self, context: OperatorContext, key: ObjectKey, obj: Object, group: ScenarioGroup
    ) -> None:
        self.context = context
        self.key = key
        self.obj = obj
        self.group = group
        self.now = context.now()
        self.missing: list[tuple[str, str]] = []
        """Reason and message of refused objects that instances serve without."""

    async def run(self) -> float | None:
        self.context.unsettled.looked_at(self.key, settled=False)
        # 1
        seen = self.context.caches.changes
        view = view_group(self.context, self.group)
        routes = self._routes()
        routed = routed_instances(routes, self.group.spec.scenario)
        held = await self._held()
        attend(self.context, self.key, self.group, view, routed, held)
        counts = self._counts()
        wake_service(self.context, self.key, self.group, view, routes, held, counts)
        if counts is None:
            await self._write(waiting_status(self.group, not_ready(*_NO_COUNTS), self.now))
            return None
        await self.context.volumes.read(view.revisions.values())
        reach = self.context.volumes.reach
        wanted = wanted_of(self.group, counts, reach)
        domain, deleted = self._domain()
        if domain is None:
            name = self.group.spec.fabric.domain_ref.name
            self.context.claims.waits(self.key, name, rank_of(self.context, self.obj), None)
            await self._write(waiting_status(self.group, self._no_domain(), self.now))
            return None
        template = await template_condition(self.context, self.key, self.obj, self.group)
        blind = not self.context.caches.pods.state().caught_up
        service = self._service()
        wanted = in_turn(self.context.caches, service, self.group, wanted)
        # Nothing that serves may go for a pod that cannot be made (template), may be gone (blind)
        # or is taken back (edit by hand); a deleted RoCEDomain's tree is for repair alone.
        refused = template.status == "False" or deleted
        edited = service is not None and not is_as_asked(self.group, service)
        wanted = replace(wanted, paused=bool(wanted.paused or refused or blind or edited))
        await self._revisions(view)
        await prepare_places(self.context, fabric_spec(domain), view, wanted, counts)
        # 2
        if self.context.caches.changes != seen:
            view = view_group(self.context, self.group)
        self.context.promises.plans_anew(self.key)
        observation = self._observation(view, wanted, former_wanted(view, counts, reach), routes)
        planned = plan(observation, self._fabric(domain))
        rank = rank_of(self.context, self.obj)
        self.context.claims.waits(self.key, domain.metadata.name, rank, planned.blocked_request)
        noted = self.context.claims.noted(self.group)
        # 3
        with self._promising(promised(planned, observation)):
            found = (template, *fabric_condition(self.group, domain), *deleted)
            again = await self._carry_out(view, planned, found, noted)
        if blind:
            again = min(BLIND_RETRY, again or BLIND_RETRY)
        # What keeps it from acting ends without a change of a node, but it is not settled yet.
        settled = planned.settled and again is None and not wanted.paused
        self.context.unsettled.looked_at(self.key, settled=settled)
        if planned.blocked_request is None or not _restricted(planned.blocked_request):
            return again
        # Where a volume is changes without an event.
        return min(VOLUME_RETRY, again or VOLUME_RETRY)

    @contextmanager
    def _promising(self, reservations: Iterable[Reservation]) -> Iterator[None]:
        """Promise the devices of pods to be created; announce afterwards what none of them took.

        No event of an object tells that a POST failed. Not at once: of two groups that are refused
        each would wake the other for ever.
        """
        asked = tuple(reservations)
        try:
            with self.context.promises.held(self.key, asked):
                yield
        finally:
            pods = self.context.caches.pods
            if any(pods.get(r.pod, self.key.namespace) is None for r in asked):
                for key in self.context.claims.waiting():
                    self.context.queue.add_after(group_key(key), REFUSED_RETRY)

    async def _revisions(self, view: ScenarioGroupView) -> None:
        """Keep what is needed to render the pods that are there; without it they are served on."""
        client, caches = self.context.client, self.context.caches
        used = {i.revision for i in view.instances}
        await self._unless_refused(keep_revisions(client, caches, self.obj, self.group, used))

    async def _budgets(self, wanted: Mapping[int, DisruptionBudget]) -> None:
        """Say what evictions must leave, before anything that the plan does."""
        client, caches = self.context.client, self.context.caches
        await self._unless_refused(keep_budgets(client, caches, self.obj, self.group, wanted))

    async def _unless_refused(self, write: Awaitable[None]) -> None:
        """Write what instances serve without; a refusal is an Event and condition Degraded."""
        try:
            await write
        except NotOursError as error:
            self.context.metrics.refusals.labels(error.resource.kind).inc()
            self.missing.append((reasons.REFUSED, str(error)))
        except KubeError as error:
            if not (error.is_forbidden or error.is_invalid):
                raise
            self.missing.append((reasons.CREATE_FAILED, str(error)))
        else:
            return
        self.context.events.event(self.obj, "Warning", *self.missing[-1])

    def _observation(
        self,
        view: ScenarioGroupView,
        wanted: Wanted,
        former: Mapping[str, Wanted],
        routes: RouteTable | None,
    ) -> Observation:
        return Observation(
            wanted=wanted,
            instances=view.instances,
            tables=view.tables,
            links=self.context.linker.links(self.key),
            drains=self.context.linker.drains(self.key),
            repairs=repairs_of(self.group),
            rollout=rollout_state(self.group),
            routed=routed_instances(routes, self.group.spec.scenario),
            has_routes=routes is not None,
            now=self.now,
            former=former,
            claims=self.context.claims.of(self.group),
            bettered=self.context.node_changes.bettered,
            signals_seen=self.context.node_changes.signals_seen,
            budgets=known_budgets(self.context.caches, self.group),
            ahead=self.context.claims.ahead(
                self.group.spec.fabric.domain_ref.name, rank_of(self.context, self.obj)
            ),
        )

    async def _carry_out(
        self,
        view: ScenarioGroupView,
        planned: Plan,
        found: tuple[ConditionState, ...],
        noted: tuple[DeviceClaim, ...],
    ) -> float | None:
        """`found` are conditions that hold whatever the plan says; `noted` claims it was made on
        that status did not name.
        """
        for reason in planned.reasons:
            log.debug("%s: %s", self.key, reason)
        executor = GroupExecutor(self.context, self.obj, view)
        refused: ConditionState | None = None
        if must_be_recorded_first(planned, claims_of(self.group)):
            await self._write({"claims": to_json(planned.claims)})
            self.context.claims.decided(self.group, noted)
        await self._budgets(planned.budgets)
        try:
            await executor.execute(planned.actions)
        except CreateRefused as error:
            refused = ConditionState("Placed", "False", "CreateRefused", str(error))
            self.context.events.event(self.obj, "Warning", reasons.CREATE_FAILED, str(error))
        except NotOursError as error:
            refused = ConditionState("Placed", "False", "NameTaken", str(error))
            self.context.metrics.refusals.labels(error.resource.kind).inc()
            self.context.events.event(self.obj, "Warning", reasons.REFUSED, str(error))
        more = [*found, *ratio_condition(self._counts(), self._scenario())]
        more += degraded_condition(self.group, self.missing)
        more += [
            ConditionState("Progressing", "False", "TemplateInvalid", c.message)
            for c in found
            if c.type == TEMPLATE_VALID and c.status == "False"
        ]
        more += [refused] if refused is not None else []
        said = {c.type for c in more}
        conditions = (*(c for c in planned.conditions if c.type not in said), *more)
        self._tell(conditions, "Placed", reasons.NO_FIT)
        self._tell(conditions, "Progressing", reasons.UNCOVERED)
        self._tell(conditions, "Progressing", reasons.STOPPED)
        # Claims of pods that were refused hold the places for the next try.
        fabric = known_fabric(self.context.caches, self.group)
        status = status_of(self.group, planned, conditions, view.instances, fabric, self.now)
        await self._write(status)
        self.context.claims.decided(self.group, noted)
        if {*claims_of(self.group), *noted} - set(planned.claims):
            for key in self.context.claims.waiting():
                self.context.queue.add(group_key(key))
        if refused is None and not self.missing:
            return planned.requeue_after
        return min(REFUSED_RETRY, planned.requeue_after or REFUSED_RETRY)

    def _tell(self, conditions: tuple[ConditionState, ...], kind: str, reason: str) -> None:
        """An Event when a condition gets this reason, and again when its message is another."""
        now = next(c for c in conditions if c.type == kind)
        known = next((c for c in self.group.status.conditions if c.type == kind), None)
        if now.reason != reason:
            return
        if known is None or (known.reason, known.message) != (now.reason, now.message):
            self.context.events.event(self.obj, "Warning", reason, now.message)

    async def _write(self, status: JsonMap) -> None:
        live_status = self.obj.get("status") or {}
        if covers(live_status, status) and all(
            covers(status[part], live_status.get(part) or type(status[part])())
            for part in ("repairs", "rollout")
            if part in status
        ):
            return
        live = await self.context.client.patch_status(
            SCENARIO_GROUPS, self.key.name, status,
            namespace=self.key.namespace, uid=self.group.metadata.uid,
            field_manager=names.FIELD_MANAGER,
        )  # fmt: skip
        groups = self.context.caches.groups
        observe_own_status(self.context.queue, group_key(self.key), groups, self.obj, live)
        self.obj = live

    # --- around the plan -------------------------------------------------------------------

    def _no_domain(self) -> tuple[ConditionState, ...]:
        name = self.group.spec.fabric.domain_ref.name
        if self.context.caches.domains.get(name) is not None:
            message = f"RoCEDomain {name!r} cannot be read: its condition Ready says why"
            return not_ready("DomainInvalid", message)
        message = f"there is no RoCEDomain {name!r}; create it or correct fabric.domainRef.name"
        return not_ready("UnknownDomain", message)

    def _domain(self) -> tuple[RoCEDomain | None, tuple[ConditionState, ...]]:
        """The RoCEDomain, or as it was last known with the condition that says so."""
        name = self.group.spec.fabric.domain_ref.name
        found = domain_of(self.context.caches, name)
        if found is not None:
            return found, ()
        told = (c for c in self._no_domain() if c.type == "Progressing")
        return recalled_domain(self.group), tuple(told)

    def _counts(self) -> Counts | None:
        """The counts to act on: a PDService's decision, or the spec of one written by hand."""
        owned = controller_uid(self.obj) is not None
        return acting_counts(self.group, self._scenario(), owned=owned)

    def _service(self) -> PDService | None:
        """The PDService that made this ScenarioGroup, if it can be read."""
        obj = self.context.caches.services.get(self.group.spec.service, self.key.namespace)
        if obj is None or controller_uid(self.obj) != obj["metadata"]["uid"]:
            return None
        try:
            return parsed(PDService, obj)
        except InvalidObjectError:
            return None  # its own reconciliation tells

    def _as_asked(self, wanted: Wanted) -> Wanted:
        """`wanted` in its turn; paused while an edit by hand, about to be put back, changes it."""
        service = self._service()
        if service is None:
            return wanted
        wanted = in_turn(self.context.caches, service, self.group, wanted)
        return wanted if is_as_asked(self.group, service) else replace(wanted, paused=True)

    def _scenario(self) -> Scenario | None:
        """The scenario of that PDService."""
        service = self._service()
        listed = () if service is None else service.spec.scenarios
        return next((s for s in listed if s.name == self.group.spec.scenario), None)

    def _fabric(self, domain: RoCEDomain) -> Fabric:
        return self.context.taken.fabric(fabric_spec(domain))

    def _routes(self) -> RouteTable | None:
        name = names.routes_configmap_name(self.group.spec.service)
        return parse_routes(self.context.caches.config_maps.get(name, self.key.namespace))

    async def _held(self) -> ServiceCredentials | None:
        """The service's credentials; None before they are made."""
        try:
            return await self.context.tokens.get(service_name(self.key, self.group))
        except BadSecret:
            return None
        except KubeError as error:
            if error.is_not_found:
                return None
            raise


def _restricted(request: GroupRequest) -> bool:
    return any(request.shape(role).nodes is not None for role in ROLES)


_NO_COUNTS = (
    "CountsMissing",
    "spec.replicas, spec.prefill.replicas and spec.decode.replicas must all be set; the ratio "
    "mode's owner sets them",
)
