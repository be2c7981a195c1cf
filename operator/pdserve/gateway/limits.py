"""Limits of scenarios and API keys, as clients meet them: 429 and the headers of the OpenAI API.

A request is admitted before it has a place in the room. It takes its prompt and the most that it
may generate, and is settled by what it used when it ended. Neighbours: `forwarding.limit_book`
decides, `auth` has the limits of keys, `app` asks for each request that is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, isfinite
from typing import Final

from pdserve.forwarding.limit_book import LimitAsk, LimitBook, LimitSubject, Verdict
from pdserve.forwarding.rate_limits import Exceeded, Left, LimitKind
from pdserve.gateway.auth import KeyRing
from pdserve.gateway.measure import Timeline
from pdserve.gateway.metrics import GatewayMetrics
from pdserve.http1.errors import ApiError, Headers
from pdserve.terms.json import JsonMap
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

    __slots__ = ("_ask", "_limits", "_scenario", "headers")

    def __init__(
        self, limits: GatewayLimits, ask: LimitAsk, scenario: str, headers: Headers
    ) -> None:  # fmt: skip
        self._limits = limits
        self._ask = ask
        self._scenario = scenario
        self.headers = headers
        """For its answer: what is left."""

    def end(self, choices: Sequence[Timeline]) -> None:
        """Settle by what its choices used; to be called once, however the request ended."""
        self._limits.ended(self._ask, self._scenario, choices)


class GatewayLimits:
    """The limits that one gateway process holds."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        keys: KeyRing | None,
        clock: Callable[[], float],
    ) -> None:
        """Make limits of which nothing was used.

        Args:
            metrics: count refusals.
            keys: have the limits of clients; None where any client may call.
            clock: monotonic seconds.
        """
        self._metrics = metrics
        self._keys = keys
        self._clock = clock
        self._book = LimitBook()
        self._service = ""
        self._outputs: dict[str, float] = {}
        """Mean output tokens of a choice, by scenario; of limited ones alone."""

    def follow(self, table: RouteTable) -> None:
        """Hold the limits of another route table from now on."""
        self._service = table.service
        names = {s.name for s in table.scenarios}
        self._outputs = {n: mean for n, mean in self._outputs.items() if n in names}

    def subjects(self, scenario: RouteScenario, client: bytes) -> tuple[LimitSubject, ...]:
        """Whose limits a request counts in; none for most."""
        found: tuple[LimitSubject, ...] = ()
        if scenario.limits:
            found = (LimitSubject(_SCENARIO + scenario.name, scenario.limits),)
        if self._keys is not None and (key := self._keys.limits_of(client)):
            found = (*found, LimitSubject(f"key:{client.hex()}", key))
        return found

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
        verdict = self._book.admit(ask, "", self._clock())
        if verdict.exceeded is not None:
            subject = subjects[verdict.subject].id
            scope = "scenario" if subject.startswith(_SCENARIO) else "key"
            self._metrics.limited.labels(
                self._service, scenario.name, scope, verdict.exceeded.kind
            ).inc()
            name = f"scenario {scenario.name!r}" if scope == "scenario" else "this API key"
            raise _refusal(name, verdict.exceeded, rate_headers(verdict))
        return LimitedRequest(self, ask, scenario.name, rate_headers(verdict))

    def ended(self, ask: LimitAsk, scenario: str, choices: Sequence[Timeline]) -> None:
        """Settle an admitted request; see `LimitedRequest.end`."""
        used, now = 0, self._clock()
        mean = self._outputs.get(scenario, USUAL_OUTPUT)
        for choice in choices:
            # Token counts are an engine's word: nonsense must not fail what comes after it.
            output = max(0, choice.output_tokens)
            used += max(0, choice.prompt_tokens) + output
            if output:
                mean += (output - mean) * LEARNING
        self._outputs[scenario] = mean
        self._book.settle(ask.subjects, ask.tokens - used, now)
        self._book.ended(ask.subjects, "", now)

    def _tokens(self, scenario: RouteScenario, prompts: Sequence[float], body: JsonMap) -> int:
        """What a request may use at most; where it names no maximum, what it is likely to."""
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        output = self._outputs.get(scenario.name, USUAL_OUTPUT) if most is None else float(most)
        total = 0.0
        for prompt in prompts:
            room = scenario.max_model_len - prompt if scenario.max_model_len else output
            total += prompt + max(0.0, min(output, room))
        return ceil(total)


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
