"""Gateway metrics: every offered request counted once, with its outcome, per scenario.

Series exist at zero from the first route table on, so that rates exist before the first failure.
Buckets lie around each scenario's own targets. Names and meaning: `wire.metrics`; what a request
amounted to: `measure`. `offered` leaves out what is not the service's doing: invalid requests,
and clients that left before their deadline.
"""

from __future__ import annotations

from pdserve import __version__
from pdserve.exposition import Counter, CounterSeries, Gauge, Histogram, Registry
from pdserve.exposition.process_metrics import tell_process
from pdserve.forwarding.rate_limits import LIMIT_KINDS
from pdserve.forwarding.request.measure import (
    OUTCOMES,
    LocalResult,
    Outcome,
    Stage,
    Timeline,
    judge,
)
from pdserve.terms import ROLES, Role, Slo
from pdserve.wire import calls
from pdserve.wire import metrics as names
from pdserve.wire.routes import RouteScenario, RouteTable

LOCAL_RESULTS: tuple[LocalResult, ...] = ("served", "refused", "failed")
STAGES: tuple[Stage, ...] = ("arrival", "before_prefill", "after_prefill")

SCOPES = ("scenario", "key")
"""Whose limit refused a request."""
AROUND_TARGET = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
E2E_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
_LABELS = ("service", "scenario")
_REASONS = (
    calls.REJECT_DRAINING,
    calls.REJECT_NOT_READY,
    calls.REJECT_DEADLINE,
    calls.REJECT_TPOT,
    "connect",
    "status",
)
_FULL: dict[Role, str] = {"prefill": calls.REJECT_FULL, "decode": calls.REJECT_DECODE_FULL}


class GatewayMetrics:
    """All families of one gateway process; `scenario` gives the series of one scenario."""

    def __init__(self) -> None:
        self.registry = Registry()
        tell_process(self.registry, "gateway", __version__)
        self.rooms: dict[tuple[str, str], dict[int, int]] = {}
        """Requests that wait, by scenario and scheduler: a scenario may have several."""
        self.offered = self._counter(names.GATEWAY_OFFERED, "Logical requests that count.")
        self.arrived = self._counter(names.GATEWAY_ARRIVED, "Feasible requests, at arrival.")
        self.arrived_tokens = self._counter(
            names.GATEWAY_ARRIVED_PROMPT_TOKENS, "Prompt tokens of those, estimated."
        )
        self.infeasible = self._counter(
            names.GATEWAY_INFEASIBLE, "Offered that no idle prefill answers in time."
        )
        self.outcome = self._counter(names.GATEWAY_OUTCOME, "Offered, by outcome.", "outcome")
        self.slo_met = self._counter(names.GATEWAY_SLO_MET, "Offered that met every target.")
        self.ttft_met = self._counter(names.GATEWAY_TTFT_MET, "Offered that met TTFT.")
        self.handoff_met = self._counter(names.GATEWAY_HANDOFF_MET, "Offered that met handoff.")
        self.tpot_met = self._counter(names.GATEWAY_TPOT_MET, "Offered that met TPOT.")
        self.completed = self._counter(names.GATEWAY_COMPLETED, "Completed requests.")
        self.prompt = self._counter(names.GATEWAY_PROMPT_TOKENS, "Prompt tokens of completed.")
        self.output = self._counter(names.GATEWAY_OUTPUT_TOKENS, "Output tokens of completed.")
        self.cached = self._counter(names.GATEWAY_CACHED_TOKENS, "Prompt tokens from a cache.")
        self.expected_cached = self._counter(
            names.GATEWAY_EXPECTED_CACHED_TOKENS, "Prompt tokens expected in a cache."
        )
        self.cancelled = self._counter(
            names.GATEWAY_CLIENT_CANCELLED, "Clients that left in time; not offered."
        )
        self.rejections = self._counter(
            names.GATEWAY_REJECTIONS, "Legs that an instance did not take.", "leg", "reason"
        )
        self.attempts = self._counter(names.GATEWAY_ATTEMPTS, "Legs tried.", "leg")
        self.continued = self._counter(
            names.GATEWAY_CONTINUED, "Streams that lost their decode and went on from another."
        )
        self.local_prefills = self._counter(
            names.GATEWAY_LOCAL_PREFILLS, "Prompts that a decode was asked to compute.", "result"
        )
        self.local_crossover = self._gauge(
            names.GATEWAY_LOCAL_CROSSOVER, "Tokens up to which a decode computes a prompt now."
        )
        self.limited = self._counter(
            names.GATEWAY_LIMITED, "Refused by a limit; not offered.", "scope", "reason"
        )
        self.by_share = self.registry.gauge(
            names.GATEWAY_BY_SHARE, "1 while limits are held by shares."
        ).labels()
        self._spans = self.registry.counter(names.GATEWAY_SPANS, "Spans of traces.", ("result",))
        self._keys = self.registry.gauge(names.GATEWAY_KEYS, "API keys.", ("state",))
        self.expired = self._counter(names.GATEWAY_EXPIRED, "Deadlines passed.", "stage")
        self._add_states()
        self._add_times()

    def _add_states(self) -> None:
        self.waiting = self._gauge(names.GATEWAY_WAITING, "Requests waiting for a prefill.")
        self.prefix_blocks = self._gauge(
            names.GATEWAY_PREFIX_BLOCKS, "Prompt blocks in the prefix index."
        )
        self.prefix_feeds = self._gauge(
            names.GATEWAY_PREFIX_FEEDS, "Prefills that report what their prefix caches have."
        )
        self.prefix_feeds_broken = self._counter(
            names.GATEWAY_PREFIX_FEEDS_BROKEN, "Such reports that made no sense and were left."
        )
        self.inflight = self._gauge(
            names.GATEWAY_INFLIGHT, "Slots this gateway occupies.", "leg", "instance"
        )
        self.ejected = self._gauge(names.GATEWAY_EJECTED, "1 while passively ejected.", "instance")
        self.route_version = self.registry.gauge(
            names.GATEWAY_ROUTE_VERSION, "Version of the route table in use.", ("service",)
        )

    def _add_times(self) -> None:
        self.ttft = self._histogram(
            names.GATEWAY_TTFT,
            "Head received to first content written; not streamed: to the prefill's reply.",
            "stream",
        )
        self.handoff = self._histogram(names.GATEWAY_HANDOFF, "Token 2 - token 1.")
        self.tpot = self._histogram(names.GATEWAY_TPOT, "Mean time per token after the handoff.")
        self.e2e = self.registry.histogram(
            names.GATEWAY_E2E, "Head received to reply complete.", _LABELS, E2E_BUCKETS
        )

    def spans(self) -> tuple[CounterSeries, CounterSeries, CounterSeries]:
        """Spans that were exported, that found the queue full, and whose export failed."""
        exported, full, failed = map(self._spans.labels, ("exported", "queue_full", "failed"))
        return exported, full, failed

    def keys(self, accepted: int, refused: int) -> None:
        """Show how many API keys are accepted, and refused for their limits (set when scraped)."""
        self._keys.labels("accepted").set(accepted)
        self._keys.labels("refused").set(refused)

    def follow(self, table: RouteTable) -> None:
        """Show the table's version, and forget series of instances that left it."""
        self.route_version.labels(table.service).set(table.version)
        routed = {
            (table.service, s.name, i.id)
            for s in table.scenarios
            for g in s.groups
            for i in g.instances
        }
        for gauge in (self.inflight, self.ejected):
            for key in gauge.known():
                if (key[0], key[1], key[-1]) not in routed:
                    gauge.remove(*key)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self.registry.counter(name, text, (*_LABELS, *labels))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self.registry.gauge(name, text, (*_LABELS, *labels))

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return self.registry.histogram(name, text, (*_LABELS, *labels), AROUND_TARGET)


class ScenarioMetrics:
    """The series of one scenario, made at zero; those of every request are held, not looked up."""

    def __init__(self, families: GatewayMetrics, service: str, scenario: str, slo: Slo) -> None:
        self._f = f = families
        self._key = key = (service, scenario)
        self._offered = f.offered.labels(*key)
        self._arrived = f.arrived.labels(*key)
        self._arrived_tokens = f.arrived_tokens.labels(*key)
        self._infeasible = f.infeasible.labels(*key)
        self._outcome = {outcome: f.outcome.labels(*key, outcome) for outcome in OUTCOMES}
        self._slo_met = f.slo_met.labels(*key)
        self._ttft_met = f.ttft_met.labels(*key)
        self._handoff_met = f.handoff_met.labels(*key)
        self._tpot_met = f.tpot_met.labels(*key)
        self._completed = f.completed.labels(*key)
        self._prompt = f.prompt.labels(*key)
        self._output = f.output.labels(*key)
        self._cached = f.cached.labels(*key)
        self._expected_cached = f.expected_cached.labels(*key)
        self._prefix_blocks = f.prefix_blocks.labels(*key)
        self._prefix_feeds = f.prefix_feeds.labels(*key)
        self._prefix_feeds_broken = f.prefix_feeds_broken.labels(*key)
        self._cancelled = f.cancelled.labels(*key)
        self._continued = f.continued.labels(*key)
        self._local = {result: f.local_prefills.labels(*key, result) for result in LOCAL_RESULTS}
        self._local_crossover = f.local_crossover.labels(*key)
        self._attempts = {role: f.attempts.labels(*key, role) for role in ROLES}
        for role in ROLES:
            for reason in (_FULL[role], *_REASONS):
                f.rejections.labels(*key, role, reason)
        for scope in SCOPES:
            for kind in LIMIT_KINDS:
                f.limited.labels(*key, scope, kind)
        self._expired = {stage: f.expired.labels(*key, stage) for stage in STAGES}
        self._waiting = f.waiting.labels(*key)
        around = _around(slo.ttft)
        self._ttft = {
            streamed: f.ttft.create(*key, label, buckets=around)
            for streamed, label in ((True, "true"), (False, "false"))
        }
        self._handoff = f.handoff.create(*key, buckets=_around(slo.handoff))
        self._tpot = f.tpot.create(*key, buckets=_around(slo.tpot))
        self._e2e = f.e2e.labels(*key)

    def arrived(self, tokens: float) -> None:
        """Count a request that a prefill could answer in time, and its prompt tokens."""
        self._arrived.inc()
        self._arrived_tokens.inc(max(0.0, tokens))

    def infeasible(self) -> None:
        """Count a request whose prefill alone takes longer than its TTFT target."""
        self._infeasible.inc()

    def attempted(self, leg: Role) -> None:
        """Count a leg that goes out."""
        self._attempts[leg].inc()

    def rejected(self, leg: Role, reason: str) -> None:
        """Count a leg that an instance did not take."""
        self._f.rejections.labels(*self._key, leg, reason).inc()

    def waiting(self, requests: int) -> None:
        """Show how many requests wait for a prefill."""
        rooms = self._f.rooms.setdefault(self._key, {})
        rooms[id(self)] = requests
        if not requests:
            del rooms[id(self)]
        self._waiting.set(sum(rooms.values()))

    def expired(self, stage: Stage) -> None:
        """Count a deadline that passed at this stage."""
        self._expired[stage].inc()

    def continued(self) -> None:
        """Count a stream that lost its decode and is about to go on from another."""
        self._continued.inc()

    def local_prefill(self, result: LocalResult) -> None:
        """Count a prompt that a decode was asked to compute."""
        self._local[result].inc()

    def local_crossover(self, tokens: int) -> None:
        """Show up to which length a decode computes a prompt (set when scraped)."""
        self._local_crossover.set(tokens)

    def client_cancelled(self) -> None:
        """Count a client that left in time: not offered."""
        self._cancelled.inc()

    def prefixes(self, blocks: int, feeds: int) -> None:
        """Show what the prefix index has (set when scraped).

        `blocks`: prompt blocks; `feeds`: prefills that report theirs.
        """
        self._prefix_blocks.set(blocks)
        self._prefix_feeds.set(feeds)

    def feed_broken(self) -> None:
        """Count a prefill's report of its prefix cache that made no sense."""
        self._prefix_feeds_broken.inc()

    def instance(self, leg: Role, instance: str, used: int, ejected: bool) -> None:
        """Show what this process has at one routed instance (set when scraped).

        `used`: slots in use; `ejected`: it is left out after failures.
        """
        self._f.inflight.labels(*self._key, leg, instance).set(used)
        self._f.ejected.labels(*self._key, instance).set(ejected)

    def finish(
        self, timeline: Timeline, outcome: Outcome, now: float, scenario: RouteScenario
    ) -> None:
        """Count one offered request, the targets it met, and its times in seconds.

        `now`: when it ended, on the timeline's clock.
        """
        verdict = judge(timeline, outcome, scenario.slo)
        self._offered.inc()
        self._outcome[outcome].inc()
        for met, series in (
            (verdict.all, self._slo_met), (verdict.ttft, self._ttft_met),
            (verdict.handoff, self._handoff_met), (verdict.tpot, self._tpot_met),
        ):  # fmt: skip
            if met:
                series.inc()
        for seconds, histogram in (
            (timeline.ttft, self._ttft[timeline.streamed]), (timeline.handoff, self._handoff),
            (timeline.tpot, self._tpot),
        ):  # fmt: skip
            if seconds is not None:
                histogram.observe(seconds)
        if outcome == "completed":
            self._completed.inc()
            # Token counts are an engine's word: a nonsensical one must not fail the request.
            self._prompt.inc(max(0, timeline.prompt_tokens))
            self._output.inc(max(0, timeline.output_tokens))
            self._cached.inc(max(0, timeline.cached_tokens))
            self._expected_cached.inc(timeline.expected_cached)
            self._e2e.observe(now - timeline.arrived)


def _around(target: float) -> list[float]:
    return [float(f"{target * share:.6g}") for share in AROUND_TARGET]
