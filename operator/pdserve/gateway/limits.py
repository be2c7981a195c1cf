"""Limits of scenarios and API keys, as clients meet them: 429 and the headers of the OpenAI API.

A request is admitted before it has a place in the room. It takes its prompt and the most that it
may generate, and is settled by what it used when it ended. Neighbours: `forwarding.limit_book`
decides, `auth` has the limits of keys, `app` asks for each request that is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, isfinite
from typing import Final

from pdserve.engines.credentials import Credential
from pdserve.forwarding.limit_book import LimitAsk, LimitBook, LimitSubject, Verdict
from pdserve.forwarding.limit_exchange import share
from pdserve.forwarding.rate_limits import Exceeded, Left, LimitKind
from pdserve.forwarding.request.measure import Timeline
from pdserve.gateway.auth import API_KEY, AUTHORIZATION, KeyRing, tenant_of
from pdserve.gateway.limit_peers import LimitPeers, answer_report
from pdserve.gateway.metrics import GatewayMetrics
from pdserve.http1.errors import ApiError, Headers
from pdserve.terms.json import JsonMap
from pdserve.terms.limits import UsageLimits
from pdserve.wire.routes import RouteScenario, RouteTable

USUAL_OUTPUT: Final = 256.0
"""Tokens that an answer without a maximum is expected to have, until some were seen."""
LEARNING: Final = 0.05
"""Weight of one more answer in the mean."""
BUSY_SECONDS: Final = 1.0
"""When to come back after `concurrent`: nothing says when a request in progress ends."""
_SCENARIO: Final = "scenario:"
_IN_WORDS: Final[dict[LimitKind, str]] = {
    "requests": "requests per min (RPM)",
    "tokens": "tokens per min (TPM)",
    "concurrent": "requests in progress",
}


class LimitedRequest:
    """One admitted request."""

    __slots__ = ("_ask", "_limits", "_scenario", "_shared", "headers")

    def __init__(
        self, limits: GatewayLimits, ask: LimitAsk, shared: bool, scenario: str, headers: Headers
    ) -> None:
        """`shared`: admitted by the share of this gateway."""
        self._limits = limits
        self._ask = ask
        self._shared = shared
        self._scenario = scenario
        self.headers = headers
        """For its answer: what is left."""

    def end(self, choices: Sequence[Timeline]) -> None:
        """Settle by what its choices used; to be called once, however the request ended."""
        self._limits.ended(self._ask, self._shared, self._scenario, choices)


class GatewayLimits:
    """The limits that one gateway process holds."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        keys: KeyRing | None,
        credential: Credential,
        own_id: str,
        patience: float,
        clock: Callable[[], float],
    ) -> None:
        """Make limits of which nothing was used.

        Args:
            metrics: count refusals.
            keys: have the limits of clients; None where any client may call.
            credential: proves to other gateways of the service that this is one.
            own_id: in the list of gateways of the route table.
            patience: seconds to wait for the gateway that decides.
            clock: monotonic seconds.
        """
        self._metrics = metrics
        self._keys = keys
        self._clock = clock
        self._credential = credential
        self._own_id = own_id
        self._book = LimitBook()
        """What this gateway decides for all; empty where another one does."""
        self._shares = LimitBook()
        """What it decides while that one does not answer."""
        self._gateways = 1
        self.peers = LimitPeers(credential, own_id, patience, clock)
        self._service = ""
        self._decides = True
        self._outputs: dict[str, float] = {}
        """Mean output tokens of a choice, by scenario; of limited ones alone."""

    def follow(self, table: RouteTable) -> None:
        """Hold the limits of another route table from now on."""
        self._service = table.service
        first = table.gateways[0] if table.gateways else None
        other = None if first is None or first.id == self._own_id else first
        self._gateways = max(1, len(table.gateways))
        if other is None and not self._decides:
            self._book = LimitBook()
            self.peers.outbox.hand_over(self._book, self._own_id, self._clock())
        if other is not None and self._decides:
            self.peers.outbox.learn(self._book, self._clock())
            self._book = LimitBook()
        self._decides = other is None
        self.peers.follow(other)
        names = {s.name for s in table.scenarios}
        self._outputs = {n: mean for n, mean in self._outputs.items() if n in names}

    def subjects(self, scenario: RouteScenario, client: bytes) -> tuple[LimitSubject, ...]:
        """Whose limits a request counts in; none for most."""
        found: tuple[LimitSubject, ...] = ()
        if scenario.limits:
            found = (LimitSubject(_SCENARIO + scenario.name, scenario.limits),)
        if self._keys is not None and (key := self._keys.limits_of(client)):
            found = (*found, _of_key(client, key))
        return found

    def screen(self, headers: Mapping[bytes, bytes]) -> ApiError | None:
        """Refuse a request by its head where its key has nothing left: its body costs nothing then.

        None: it may be admitted; what it asks for is not known yet.
        """
        if self._keys is None or not self._keys.limited:
            return None
        client = tenant_of(headers.get(AUTHORIZATION), headers.get(API_KEY))
        subject, now = _of_key(client, self._keys.limits_of(client)), self._clock()
        if not subject.limits:
            return None
        decides = self._book if self._decides else self.peers.outbox
        found = decides.refusal(subject, now)
        if found is None or found.exceeded is None:
            return None
        self._metrics.limited.labels(self._service, "", "key", found.exceeded.kind).inc()
        return _refusal("this API key", found.exceeded, rate_headers(found))

    async def admit(
        self, subjects: tuple[LimitSubject, ...], scenario: RouteScenario, prompts: Sequence[float],
        body: JsonMap,
    ) -> LimitedRequest:  # fmt: skip
        """Admit a request in all of its subjects.

        Args:
            subjects: what `subjects` returned, not empty.
            scenario: that takes the request.
            prompts: expected tokens of the prompt of each choice.
            body: checked.

        Raises:
            ApiError: 429, a limit is reached.
        """
        ask = LimitAsk(subjects, self._tokens(scenario, prompts, body))
        verdict = None if self._decides else await self.peers.decide(ask)
        shared = verdict is None and not self._decides
        self._metrics.by_share.set(shared)
        if verdict is None:
            verdict = self._decide(ask)
        if verdict.exceeded is not None:
            subject = subjects[verdict.subject].id
            scope = "scenario" if subject.startswith(_SCENARIO) else "key"
            self._metrics.limited.labels(
                self._service, scenario.name, scope, verdict.exceeded.kind
            ).inc()
            name = f"scenario {scenario.name!r}" if scope == "scenario" else "this API key"
            raise _refusal(name, verdict.exceeded, rate_headers(verdict))
        return LimitedRequest(self, ask, shared, scenario.name, rate_headers(verdict))

    def _decide(self, ask: LimitAsk) -> Verdict:
        """Decide for all gateways, or where another one would, by this one's share."""
        now, outbox = self._clock(), self.peers.outbox
        book, asked = self._book, ask
        if not self._decides:
            shares = (LimitSubject(s.id, share(s.limits, self._gateways)) for s in ask.subjects)
            book, asked = self._shares, LimitAsk(tuple(shares), ask.tokens)
        for subject in asked.subjects:
            book.hold(subject, self._own_id, outbox.held(subject), now)
        verdict = book.admit(asked, self._own_id, now)
        if verdict.exceeded is None:
            outbox.began(ask.subjects)
        return verdict

    def ended(
        self, ask: LimitAsk, shared: bool, scenario: str, choices: Sequence[Timeline]
    ) -> None:  # fmt: skip
        """Settle an admitted request; see `LimitedRequest.end`."""
        used, now = 0, self._clock()
        mean = self._outputs.get(scenario, USUAL_OUTPUT)
        for choice in choices:
            # Token counts are an engine's word: nonsense must not fail what comes after it.
            used += max(0, choice.prompt_tokens) + choice.generated
            if choice.output_tokens > 0:
                mean += (choice.output_tokens - mean) * LEARNING
        self._outputs[scenario] = mean
        left, outbox = ask.tokens - used, self.peers.outbox
        if shared:
            self._shares.settle(ask.subjects, left, now)
        elif self._decides:
            self._book.settle(ask.subjects, left, now)
        outbox.ended(ask.subjects, 0 if shared or self._decides else left)
        if self._decides:
            for subject in ask.subjects:
                self._book.hold(subject, self._own_id, outbox.held(subject), now)
        self.peers.changed()

    def answer(self, headers: Mapping[bytes, bytes], body: bytes) -> bytes:
        """Answer the report of another gateway.

        Raises:
            ApiError: see `limit_peers.answer_report`.
        """
        now = self._clock()
        return answer_report(self._book, self._credential, self._own_id, headers, body, now)

    def _tokens(self, scenario: RouteScenario, prompts: Sequence[float], body: JsonMap) -> int:
        """What a request may use at most; where it names no maximum, what it is likely to."""
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        output = self._outputs.get(scenario.name, USUAL_OUTPUT) if most is None else float(most)
        total = 0.0
        for prompt in prompts:
            room = scenario.max_model_len - prompt if scenario.max_model_len else output
            total += prompt + max(0.0, min(output, room))
        return ceil(total)


def _of_key(client: bytes, limits: UsageLimits) -> LimitSubject:
    return LimitSubject(f"key:{client.hex()}", limits)


def rate_headers(verdict: Verdict) -> Headers:
    """`x-ratelimit-*` of the rates that are limited, as the OpenAI API has them."""
    found: Headers = ()
    for kind, left in verdict.left.items():
        found = (*found, *_headers(kind.encode(), left))
    return found


def _headers(kind: bytes, left: Left) -> Headers:
    return (
        (b"x-ratelimit-limit-" + kind, b"%d" % left.limit),
        (b"x-ratelimit-remaining-" + kind, b"%d" % left.left),
        (b"x-ratelimit-reset-" + kind, duration(left.full_in).encode()),
    )


def _refusal(name: str, exceeded: Exceeded, headers: Headers) -> ApiError:
    kind, limit, used, asked, wait = exceeded
    message = (
        f"Rate limit reached for {name} on {_IN_WORDS[kind]}: "
        f"Limit {limit}, Used {max(0, used)}, Requested {asked}."
    )
    if not isfinite(wait):
        message += " The request asks for more than the limit: shorten it or lower max_tokens."
        headers = (*headers, (b"x-should-retry", b"false"))
    else:
        wait = wait or BUSY_SECONDS
        message += f" Please try again in {duration(wait)}."
        headers = (
            (b"retry-after", b"%d" % ceil(wait)),
            (b"retry-after-ms", b"%d" % ceil(wait * 1000)),
            *headers,
        )
    return ApiError(
        429,
        message,
        kind="tokens" if kind == "tokens" else "requests",
        code="rate_limit_exceeded",
        headers=headers,
    )


def duration(seconds: float) -> str:
    """A time as the OpenAI API writes it: `17ms`, `7.66s`, `6m0s`."""
    if seconds < 1.0:
        return f"{ceil(seconds * 1000)}ms"
    if seconds < 60.0:
        return f"{ceil(seconds * 100) / 100:g}s"
    whole = ceil(seconds)
    return f"{whole // 60}m{whole % 60}s"
