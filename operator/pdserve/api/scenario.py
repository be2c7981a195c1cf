"""One scenario of a PDService: which requests, which promise, and within which bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from pdserve.api.base import ApiModel, Entries, Int, Items, Number, Rule, Text
from pdserve.api.common import MAX_GROUPS, MAX_INSTANCES, MAX_SPARES
from pdserve.api.schedule import Schedule
from pdserve.api.strings import ModelName, Moment, ScenarioName
from pdserve.api.units import Duration
from pdserve.terms import Slo
from pdserve.terms.limits import MAX_LIMIT, NO_LIMITS, UsageLimits


class Match(ApiModel):
    """Which requests a scenario takes: a named model and every header.

    Nothing named: every request for the model of the service.
    """

    models: Annotated[tuple[ModelName, ...], Items(16)] = ()
    """Values of the OpenAI field `model`; absent: `model.name` of the service."""
    headers: Annotated[
        dict[str, str],
        Entries(
            8,
            key=Text(
                64,
                pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
                says="a header name in lower case: letters, digits and '-'",
            ),
            value=Text(256),
        ),
    ] = Field(default_factory=dict)
    """Request headers, names in lower case, that must all be equal."""

    @property
    def everything(self) -> bool:
        """True when no request is excluded."""
        return not self.models and not self.headers


class SloTargets(ApiModel):
    """Targets, and the share of all offered requests that must meet them."""

    ttft: Duration
    """Time to first token, from arrival at the gateway."""
    handoff: Duration
    """Time between the first token and the second, in which the KV cache moves."""
    tpot: Duration
    """Mean time per further output token."""
    attainment_percent: Annotated[float, Number(1, 100)]
    """Share of offered requests (rejected and expired ones included) that must meet all three."""

    @property
    def value(self) -> Slo:
        """The targets in seconds, and the share as a fraction."""
        return Slo(
            self.ttft.seconds,
            self.handoff.seconds,
            self.tpot.seconds,
            self.attainment_percent / 100.0,
        )


_IN_ORDER = Rule(
    "self.min <= self.max", "min must be at most max", lambda v: v.min <= v.max, ".min"
)


class GroupBounds(ApiModel):
    """How many P/D groups a scenario may have."""

    rules = (_IN_ORDER,)

    min: Annotated[int, Int(1, MAX_GROUPS)]
    """Fewest P/D groups."""
    max: Annotated[int, Int(1, MAX_GROUPS)]
    """Most P/D groups."""


class InstanceBounds(ApiModel):
    """How many instances of one role a P/D group may have."""

    rules = (_IN_ORDER,)

    min: Annotated[int, Int(1, MAX_INSTANCES)]
    """Fewest instances."""
    max: Annotated[int, Int(1, MAX_INSTANCES)]
    """Most instances."""


class FixedCounts(ApiModel):
    """The three counts of mode Fixed."""

    groups: Annotated[int, Int(1, MAX_GROUPS)]
    """P/D groups."""
    prefill: Annotated[int, Int(1, MAX_INSTANCES)]
    """Prefill instances in each."""
    decode: Annotated[int, Int(1, MAX_INSTANCES)]
    """Decode instances in each."""


class ProposalVerdict(ApiModel):
    """A person's answer to a proposal of mode Approve."""

    proposal: Annotated[
        str, Text(8, pattern=r"^[0-9a-f]{8}$", says="eight characters of 0-9 and a-f")
    ]
    """`status.proposal.id` of the ScenarioGroup; an answer to an earlier one does nothing."""
    verdict: Literal["Approve", "Reject"]
    """Approve: the change is made. Reject: it is not proposed again for `approvalSeconds`."""


class RatioHold(ApiModel):
    """Counts that stay for a while, whatever the ratio loop would do."""

    until: Moment
    """When the loop goes on."""
    counts: FixedCounts
    """The counts, as far as the bounds allow."""


class Ratio(ApiModel):
    """Who sets the counts, and within which bounds."""

    rules = (
        Rule(
            "self.mode != 'Fixed' || has(self.fixed)",
            "mode Fixed needs fixed: {groups, prefill, decode}",
            lambda r: r.mode != "Fixed" or r.fixed is not None,
        ),
        Rule(
            "!has(self.fixed) || (self.fixed.prefill >= self.prefill.min"
            " && self.fixed.prefill <= self.prefill.max)",
            "fixed.prefill must be within ratio.prefill.min and ratio.prefill.max",
            lambda r: r.fixed is None or r.prefill.min <= r.fixed.prefill <= r.prefill.max,
            ".fixed",
        ),
        Rule(
            "!has(self.fixed) || (self.fixed.decode >= self.decode.min"
            " && self.fixed.decode <= self.decode.max)",
            "fixed.decode must be within ratio.decode.min and ratio.decode.max",
            lambda r: r.fixed is None or r.decode.min <= r.fixed.decode <= r.decode.max,
            ".fixed",
        ),
    )

    mode: Literal["Auto", "Advise", "Approve", "Fixed", "External"] = "Auto"
    """Auto: the operator follows the SLO. Advise: it decides and records, but does not act.
    Approve: it proposes each change, growth in an overload too, and makes those that a person
    approves (`kubectl pdserve approve`).
    Fixed: it keeps `fixed`. External: an autoscaler (or a person) sets the P/D groups through
    `/scale` of the ScenarioGroup, and the operator leaves all three counts alone."""
    prefill: InstanceBounds
    """Prefill instances of one P/D group."""
    decode: InstanceBounds
    """Decode instances of one P/D group."""
    fixed: FixedCounts | None = None
    """Counts for mode Fixed; kept unused in the other modes."""
    approval_seconds: Annotated[int, Int(60, 86_400)] | None = None
    """How long a proposal of mode Approve waits before it is withdrawn; absent: 900."""
    answer: ProposalVerdict | None = None
    """The last answer to a proposal of mode Approve."""
    hold: RatioHold | None = None
    """Counts that stay for a while (`kubectl pdserve undo`); unused in the modes Fixed and
    External."""


class Expected(ApiModel):
    """The traffic to size for until it is measured."""

    prompt_tokens: Annotated[int, Int(1, 10_000_000)]
    """Mean tokens of a prompt."""
    output_tokens: Annotated[int, Int(1, 1_000_000)]
    """Mean tokens of an answer."""
    prefix_hit_percent: Annotated[int, Int(0, 100)] | None = None
    """Share of prompt tokens found in the prefix cache; absent: 0."""
    requests_per_second: Annotated[float, Number(0.001, 1_000_000)]
    """Offered requests per second."""


class LocalPrefill(ApiModel):
    """Which prompts a decode computes itself, in the steps of the answers that run there."""

    rules = (
        Rule(
            "self.mode != 'Fixed' || has(self.maxTokens)",
            "mode Fixed needs maxTokens",
            lambda v: v.mode != "Fixed" or v.max_tokens is not None,
        ),
    )

    mode: Literal["Off", "Auto", "Fixed"]
    """Off: prefills compute all prompts. Auto: a decode with room computes those for which that is
    sooner than the way through a prefill by more than it delays the answers that run there, and
    within their TPOT target. Fixed: those of at most `maxTokens`, whatever it does to TPOT."""
    max_tokens: Annotated[int, Int(1, 10_000_000)] | None = None
    """Longest prompt, less what is expected in a prefix cache, for mode Fixed; kept unused in the
    other modes."""


class Routing(ApiModel):
    """Which instances gateways ask for the requests of a scenario, and in which order."""

    prefix_affinity: Literal["Auto", "Off"] | None = None
    """Auto: a prefill that holds the beginning of a prompt in its prefix cache is preferred, as far
    as engines report that they found it there. Off: prompts do not count. Absent: Auto."""
    local_prefill: LocalPrefill | None = None
    """Which prompts a decode computes itself. Absent: none (Off)."""


class ScenarioLimits(ApiModel):
    """The most that is served of a scenario, over all gateways; clients get 429 beyond."""

    rules = (
        Rule(
            "has(self.requestsPerMinute) || has(self.tokensPerMinute)"
            " || has(self.concurrentRequests)",
            "at least one of requestsPerMinute, tokensPerMinute, concurrentRequests is needed",
            lambda v: bool(v.amounts),
        ),
    )

    requests_per_minute: Annotated[int, Int(1, MAX_LIMIT)] | None = None
    """Requests in a minute; a minute's worth may come at once. Absent: not limited."""
    tokens_per_minute: Annotated[int, Int(1, MAX_LIMIT)] | None = None
    """Tokens of prompts and answers in a minute. A request takes its prompt and its maximum of
    output when it comes, and what it really used when it ends. Absent: not limited."""
    concurrent_requests: Annotated[int, Int(1, MAX_LIMIT)] | None = None
    """Requests in progress at once. Absent: not limited."""

    @property
    def amounts(self) -> UsageLimits:
        """The same, as gateways read them."""
        return UsageLimits(
            self.requests_per_minute or 0,
            self.tokens_per_minute or 0,
            self.concurrent_requests or 0,
        )


def _within(part: str) -> Callable[[Scenario], bool]:
    """Whether no window asks for more of a part of the counts than the bounds allow."""

    def check(scenario: Scenario) -> bool:
        bounds = scenario.groups if part == "groups" else getattr(scenario.ratio, part)
        asked = (getattr(w.least, part) for w in scenario.schedule if w.least is not None)
        return all(count is None or count <= bounds.max for count in asked)

    return check


class Scenario(ApiModel):
    """One kind of requests with its own SLO, served by its own P/D groups."""

    rules = (
        Rule(
            "!has(self.ratio.fixed) || (self.ratio.fixed.groups >= self.groups.min"
            " && self.ratio.fixed.groups <= self.groups.max)",
            "fixed.groups must be within groups.min and groups.max",
            lambda s: s.ratio.fixed is None or s.groups.min <= s.ratio.fixed.groups <= s.groups.max,
            ".ratio.fixed",
        ),
        *(
            Rule(
                f"!has(self.schedule) || self.schedule.all(w, !has(w.least) || !has(w.least.{part})"
                f" || w.least.{part} <= {most})",
                f"least.{part} must be at most {path}",
                _within(part),
                ".schedule",
            )
            for part, most, path in (
                ("groups", "self.groups.max", "groups.max"),
                ("prefill", "self.ratio.prefill.max", "ratio.prefill.max"),
                ("decode", "self.ratio.decode.max", "ratio.decode.max"),
            )
        ),
    )

    name: ScenarioName
    """Name, unique in the PDService; part of pod names and labels."""
    match: Match = Match()
    """Which requests it takes; only the last scenario may take all."""
    slo: SloTargets
    """The promise."""
    groups: GroupBounds
    """How many P/D groups."""
    ratio: Ratio
    """Who sets the counts, and within which bounds."""
    expected: Expected
    """The traffic to size for until it is measured."""
    schedule: Schedule = ()
    """Times of day at which it is to be larger than its load asks; kept unused in the modes Fixed
    and External."""
    spares: Annotated[int, Int(0, MAX_SPARES)] = 0
    """Warm spares of each P/D group: decodes beyond its count that are loaded and linked and get no
    requests. One takes over at once when a decode is lost or the group grows, and takes the role
    of a lost prefill where the engine can flip its role. Made once the group has served; their
    devices count in the budget."""
    routing: Routing | None = None
    """Which instances gateways ask for its requests, and in which order."""
    limits: ScenarioLimits | None = None
    """The most that is served of it; absent: not limited."""

    @property
    def request_limits(self) -> UsageLimits:
        """Its limits, as gateways read them."""
        return NO_LIMITS if self.limits is None else self.limits.amounts

    @property
    def prefix_affinity(self) -> bool:
        """Whether prefills that hold the beginning of a prompt are preferred."""
        return self.routing is None or self.routing.prefix_affinity != "Off"

    @property
    def local_prefill(self) -> LocalPrefill:
        """Which prompts a decode computes itself."""
        given = None if self.routing is None else self.routing.local_prefill
        return given or LocalPrefill(mode="Off")
