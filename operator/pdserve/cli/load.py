"""Open-loop OpenAI load: requests leave at their planned times, whatever happened to the others.

Closed-loop clients slow down with the service and hide overload; this one does not. It measures
what a client sees, per request: status, error, TTFT, handoff, TPOT, E2E, tokens (from usage), and
how late it was sent itself, so that a run in which the *client* was the bottleneck shows. Bounded
in count (`max_in_flight`) and time (`patience`). Low CPU: the gateway's own HTTP client and stream
meter. Used by the demo, the benchmarks and the tests:

    samples = await run_load("http://127.0.0.1:8000", poisson(20, 10, ask, random.Random(1)))

or `python -m pdserve.cli.load --url ... --model ... --rate 5 --seconds 10` (JSON lines out).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import uvloop

from pdserve.forwarding.request.measure import Timeline
from pdserve.gateway.sse import StreamError, StreamMeter
from pdserve.http1.client import Exchange
from pdserve.http1.listener import UpstreamError
from pdserve.http1.pool import Pool
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire.calls import HEADER_REQUEST_ID, PATH_CHAT, PATH_COMPLETIONS


@dataclass(frozen=True, slots=True)
class Ask:
    """What to ask. `prompt` is a completion prompt, or with `chat` the user's message.

    A completion prompt may be token ids.
    """

    model: str
    prompt: str | tuple[int, ...]
    max_tokens: int
    chat: bool = False
    stream: bool = True
    label: str = ""
    """Free text copied to the sample, e.g. the scenario's name."""
    extra: JsonMap = field(default_factory=dict)
    """More body fields, e.g. `{"seed": 1, "temperature": 0}`."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """The request body."""
        body: JsonObject = {"model": self.model, "max_tokens": self.max_tokens, **self.extra}
        if self.chat:
            body["messages"] = [{"role": "user", "content": self.prompt}]
        else:
            body["prompt"] = self.prompt
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return orjson.dumps(body)


@dataclass(frozen=True, slots=True)
class Planned:
    """An `ask` to be sent `at` seconds after the start."""

    at: float
    ask: Ask


@dataclass(slots=True)
class Sample:
    """What became of one planned request. Times in seconds; None: did not happen."""

    index: int
    label: str
    model: str
    at: float
    """Planned, after the start."""
    lag: float = 0.0
    """How much later than planned it was really sent (the client's own fault)."""
    status: int = 0
    """HTTP status; 0 when there was none."""
    error: str = ""
    """"" when the reply was complete; else the error's code or what happened."""
    detail: str = ""
    """What there is to say beyond `error`, e.g. why there was no connection."""
    ttft: float | None = None
    handoff: float | None = None
    tpot: float | None = None
    e2e: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    started_streaming: bool = False
    request_id: str = ""
    text: str | None = None
    """The reply's text, when asked to keep it."""

    @property
    def ok(self) -> bool:
        """Whether the reply is complete and successful."""
        return self.status == 200 and not self.error


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Bounds and credentials of a run."""

    api_key: str | None = None
    max_in_flight: int = 2048
    """Requests beyond it are not sent but recorded with error `client_limit`."""
    patience: float = 120.0
    """Seconds per request until it is given up as `timeout`."""
    keep_text: bool = False


async def run_load(
    url: str,
    schedule: Iterable[Planned],
    options: LoadOptions | None = None,
    on_sample: Callable[[Sample], None] | None = None,
) -> list[Sample]:
    """Send a schedule (in order of `at`) and return its samples in that order.

    `on_sample` is called as each request ends. Cancelling cuts what is in flight.
    """
    run = _Run(url.rstrip("/"), options or LoadOptions(), on_sample)
    try:
        return await run.all(schedule)
    finally:
        run.close()


def poisson(
    rate: float, seconds: float, ask: Callable[[int], Ask], rng: random.Random, start: float = 0.0
) -> Iterator[Planned]:
    """Poisson arrivals at `rate` requests/s during `seconds`, from second `start` on.

    `ask` makes the n-th request, counted from 0.
    """
    at, index = start + rng.expovariate(rate), 0
    while at < start + seconds:
        yield Planned(at, ask(index))
        at, index = at + rng.expovariate(rate), index + 1


def merge(*schedules: Iterable[Planned]) -> list[Planned]:
    """Several schedules as one, in order of time."""
    return sorted((p for s in schedules for p in s), key=lambda p: p.at)


def summary(samples: Iterable[Sample]) -> JsonObject:
    """Counts and percentiles over a run (percentiles of completed requests only)."""
    every = list(samples)
    done = [s for s in every if s.ok]
    errors: dict[str, int] = {}
    for s in every:
        if s.error:
            errors[s.error] = errors.get(s.error, 0) + 1
    times = {
        name: [v for s in done if (v := getattr(s, name)) is not None]
        for name in ("ttft", "handoff", "tpot", "e2e")
    }
    return {
        "sent": len(every),
        "completed": len(done),
        "errors": dict(sorted(errors.items())),
        "lag_p99": percentile([s.lag for s in every], 0.99),
        **{
            f"{name}_{label}": percentile(values, share)
            for name, values in times.items()
            for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        },
        "output_tokens": sum(s.output_tokens for s in done),
    }


def percentile(values: list[float], share: float) -> float | None:
    """Nearest-rank percentile of unsorted values, `share` of 0 to 1; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


class _Run:
    def __init__(
        self, url: str, options: LoadOptions, on_sample: Callable[[Sample], None] | None
    ) -> None:
        self._url = url
        self._options = options
        self._on_sample = on_sample
        self._pool = Pool(connect_timeout=5.0)
        self._tasks: set[asyncio.Task[None]] = set()

    async def all(self, schedule: Iterable[Planned]) -> list[Sample]:
        samples: list[Sample] = []
        started = time.perf_counter()
        for index, planned in enumerate(schedule):
            due = started + planned.at
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            ask = planned.ask
            sample = Sample(index, ask.label, ask.model, planned.at)
            sample.lag = max(0.0, time.perf_counter() - due)
            samples.append(sample)
            if len(self._tasks) >= self._options.max_in_flight:
                sample.error = "client_limit"
                self._ended(sample)
                continue
            task = asyncio.create_task(self._one(ask, sample))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.gather(*self._tasks)
        return samples

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._pool.close()

    async def _one(self, ask: Ask, sample: Sample) -> None:
        began = time.perf_counter()
        timeline = Timeline(began, ask.stream)
        try:
            async with asyncio.timeout(self._options.patience):
                await self._exchange(ask, sample, timeline)
        except TimeoutError:
            sample.error = "timeout"
        except UpstreamError as error:
            sample.error, sample.detail = f"connection_{error.kind}", str(error)
        sample.e2e = time.perf_counter() - began
        sample.ttft, sample.handoff, sample.tpot = timeline.ttft, timeline.handoff, timeline.tpot
        sample.output_tokens = timeline.output_tokens
        sample.started_streaming = ask.stream and timeline.first is not None
        self._ended(sample)

    async def _exchange(self, ask: Ask, sample: Sample, timeline: Timeline) -> None:
        headers = [(k.encode(), v.encode()) for k, v in ask.headers.items()]
        if self._options.api_key is not None:
            headers.append((b"authorization", f"Bearer {self._options.api_key}".encode()))
        path = PATH_CHAT if ask.chat else PATH_COMPLETIONS
        exchange = await self._pool.post(
            self._url, path, ask.body(), tuple(headers), self._options.patience
        )
        try:
            sample.status = exchange.status
            sample.request_id = exchange.headers.get(HEADER_REQUEST_ID.encode(), b"").decode()
            if exchange.status != 200:
                body = await exchange.read(self._options.patience)
                sample.error = _error_code(body) or f"status_{exchange.status}"
            elif ask.stream:
                await self._stream(exchange, sample, timeline)
            else:
                await self._whole(exchange, sample, timeline)
        finally:
            self._pool.done(self._url, exchange)

    async def _stream(self, exchange: Exchange, sample: Sample, timeline: Timeline) -> None:
        meter = StreamMeter(strip_usage=False)
        kept: list[bytes] = []
        broken: list[str] = []

        def sink(data: bytes) -> None:
            try:
                events = meter.feed(data, time.perf_counter())
            except StreamError as error:
                broken.append(str(error))
                exchange.abort()
                return
            if self._options.keep_text:
                kept.append(events)

        try:
            await exchange.relay(sink, self._options.patience)
        finally:
            timeline.first, timeline.second = meter.first_at, meter.second_at
            timeline.last, timeline.output_tokens = meter.last_at, meter.tokens
            sample.prompt_tokens = int((meter.usage or {}).get("prompt_tokens") or 0)
        if broken or meter.failed:
            sample.error = broken[0] if broken else "stream_error"
        if self._options.keep_text:
            sample.text = stream_text(b"".join(kept))

    async def _whole(self, exchange: Exchange, sample: Sample, timeline: Timeline) -> None:
        value = orjson.loads(await exchange.read(self._options.patience))
        usage = value.get("usage") or {}
        timeline.output_tokens = int(usage.get("completion_tokens") or 0)
        sample.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        if self._options.keep_text:
            choice = value["choices"][0]
            sample.text = choice["message"]["content"] if "message" in choice else choice["text"]

    def _ended(self, sample: Sample) -> None:
        if self._on_sample is not None:
            self._on_sample(sample)


def stream_text(events: bytes) -> str:
    """The text of a whole SSE stream."""
    parts = []
    for event in events.split(b"\n\n"):
        if not event.startswith(b"data: {"):
            continue
        for choice in orjson.loads(event[6:]).get("choices") or ():
            delta = choice.get("delta") or {}
            parts.append(choice.get("text") or delta.get("content") or "")
    return "".join(parts)


def _error_code(body: bytes) -> str:
    try:
        error = orjson.loads(body)["error"]
        return str(error.get("code") or error.get("type") or "")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ""


def main(argv: list[str] | None = None) -> int:
    """Poisson load on one model from the command line.

    A JSON line per request as it ends, then a summary on stderr; status 1 when a request failed.
    """
    parser = argparse.ArgumentParser(
        prog="pdserve-load",
        description="Open-loop OpenAI load: a JSON line per request as it ends, then a summary.",
    )
    parser.add_argument("--url", required=True, help="http://HOST:PORT of a gateway or engine")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--api-key")
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME=VALUE", help="may be repeated"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON lines file (default: stdout)")
    args = parser.parse_args(argv)
    if args.rate <= 0 or args.seconds <= 0:
        parser.error("--rate and --seconds must be positive")
    if wrong := [pair for pair in args.header if "=" not in pair]:
        parser.error(f"--header {wrong[0]}: must be NAME=VALUE")
    headers = dict(pair.split("=", 1) for pair in args.header)

    def ask(index: int) -> Ask:
        prompt = f"{args.prompt} {index}"
        return Ask(args.model, prompt, args.max_tokens, chat=args.chat, headers=headers)

    # A reproducible schedule; nothing secret depends on it.
    rng = random.Random(args.seed)  # noqa: S311 - jitter and schedules, no secrets
    schedule = poisson(args.rate, args.seconds, ask, rng)
    options = LoadOptions(api_key=args.api_key)
    with args.out.open("wb") if args.out else nullcontext(sys.stdout.buffer) as out:

        def write(sample: Sample) -> None:
            out.write(orjson.dumps(dataclasses.asdict(sample)) + b"\n")
            out.flush()

        samples = uvloop.run(run_load(args.url, schedule, options, write))
    report = orjson.dumps(summary(samples), option=orjson.OPT_INDENT_2).decode()
    print(report, file=sys.stderr)
    return 0 if all(s.ok for s in samples) else 1


if __name__ == "__main__":
    sys.exit(main())
