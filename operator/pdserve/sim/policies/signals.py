"""Figures that the laws of others read, computed from the same scrapes as ours."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Demand
from pdserve.sim.kernel.layout import BUCKETS
from pdserve.sim.policies.base import Moment
from pdserve.sim.series_names import ARRIVED, ARRIVED_PROMPT, LOAD, RUNNING, WAITING, bucket
from pdserve.sim.virtual_prometheus import GATEWAY, SETTLE
from pdserve.terms import Slo
from pdserve.wire import metrics


@dataclass(frozen=True, slots=True)
class ScrapedSignals:
    """Queries of one moment; each is None where nothing was scraped."""

    moment: Moment

    @property
    def away(self) -> bool:
        """Whether the metrics server answers nothing."""
        return self.moment.metrics.away(self.moment.now)

    @property
    def at(self) -> float:
        """When queries are evaluated."""
        return self.moment.now - SETTLE

    def _span(self, seconds: float) -> float:
        """A window, cut at the start of the run: a service of its age has older samples."""
        return min(seconds, self.at)

    def demand(self, seconds: float) -> Demand | None:
        """What clients asked over a window, with the rate at arrival.

        Prompt lengths are those of arrivals, output lengths and prefix hits those of completed
        requests.
        """
        seconds = self._span(seconds)
        arrived, prompt = self._rise(ARRIVED, seconds), self._rise(ARRIVED_PROMPT, seconds)
        completed = self._rise(metrics.GATEWAY_COMPLETED, seconds)
        output = self._rise(metrics.GATEWAY_OUTPUT_TOKENS, seconds)
        if not arrived or prompt is None or not completed or output is None:
            return None
        cached = self._rise(metrics.GATEWAY_CACHED_TOKENS, seconds) or 0.0
        served = self._rise(metrics.GATEWAY_PROMPT_TOKENS, seconds) or 1.0
        mean = prompt / arrived
        left = mean * (1.0 - min(cached / max(served, 1.0), 1.0))
        return Demand(arrived / seconds, mean, left, left * left * 1.25, output / completed)

    def p90(self, metric: str, target: float, seconds: float = 60.0) -> float | None:
        """The 0.9 quantile of a histogram as a multiple of `target`'s unit, in seconds."""
        counts = [self._rise(bucket(metric, k), seconds) or 0.0 for k in range(BUCKETS)]
        total = sum(counts)
        if total <= 0:
            return None
        left = 0.9 * total
        for index, count in enumerate(counts):
            if left <= count:
                return (index + left / max(count, 1e-9)) * target / 10.0
            left -= count
        return BUCKETS * target / 10.0

    def loads(self, pods: tuple[str, ...]) -> list[float]:
        """Requests that hold a place in each pod."""
        return self._gauges(pods, LOAD)

    def running(self, pods: tuple[str, ...]) -> list[float]:
        """Requests in each pod's batch."""
        return self._gauges(pods, RUNNING)

    def busy(self, pods: tuple[str, ...], seconds: float = 60.0) -> list[float]:
        """Share of a window in which each prefill computed."""
        series, seconds = metrics.PREFILL_COMPUTE_SECONDS, self._span(seconds)
        found = [self.moment.metrics.increase(pod, series, self.at, seconds) for pod in pods]
        return [value / seconds for value in found if value is not None]

    @property
    def waiting(self) -> float:
        """Requests in the waiting room."""
        return self.moment.metrics.latest(GATEWAY, WAITING, self.at) or 0.0

    def _rise(self, series: str, seconds: float) -> float | None:
        return self.moment.metrics.increase(GATEWAY, series, self.at, seconds)

    def _gauges(self, pods: tuple[str, ...], series: str) -> list[float]:
        found = [self.moment.metrics.latest(pod, series, self.at) for pod in pods]
        return [value for value in found if value is not None]


def prefill_seconds(profile: PerformanceProfile, demand: Demand, batch: int = 1) -> float:
    """T_p of a batch of mean prompts."""
    return profile.prefill.batch_seconds(batch, demand.uncached_tokens, demand.uncached_squared)


def prefill_rate(profile: PerformanceProfile, demand: Demand, ttft: float) -> float:
    """Most requests per second of one prefill, over the batches that meet TTFT; 0: none does."""
    rates = [
        batch / seconds
        for batch in range(1, profile.prefill_slots + 1)
        if (seconds := prefill_seconds(profile, demand, batch)) <= ttft
    ]
    return max(rates, default=0.0)


def decode_batch(profile: PerformanceProfile, demand: Demand, tpot: float) -> int:
    """b*: the largest batch within the slots whose step meets `tpot`, at least 1."""
    best = 1
    for batch in range(1, profile.decode_slots + 1):
        if profile.decode.step_seconds(batch, demand.context_tokens) <= tpot:
            best = batch
    return best


def decode_rate(profile: PerformanceProfile, demand: Demand, tpot: float) -> float:
    """Most requests per second of one decode at b*."""
    batch = decode_batch(profile, demand, tpot)
    step = profile.decode.step_seconds(batch, demand.context_tokens)
    return batch / (step * max(demand.output_tokens - 1.0, 1.0))


def idle_tpot(profile: PerformanceProfile, slo: Slo) -> float:
    """TPOT of a request alone on a decode, as a share of its target."""
    return profile.decode.step_seconds(1, 0.0) / slo.tpot
