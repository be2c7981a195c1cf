"""What Prometheus would say of a plant's scraped counters: increases over windows."""

from __future__ import annotations

from collections.abc import Iterator

from pdserve.ratio.types import RequestWindow


class Increase:
    """increase() over scraped counters."""

    def __init__(
        self, scrapes: list[tuple[float, dict[str, float]]], at: float, window: float
    ) -> None:
        inside = [(t, totals) for t, totals in scrapes if at - window <= t <= at]
        self.count = float(len(inside))
        self.first = inside[0][1] if inside else {}
        self.last = inside[-1][1] if inside else {}
        span = inside[-1][0] - inside[0][0] if len(inside) > 1 else 0.0
        self.scale = min(window / span, 1.2) if span else 0.0

    def __getitem__(self, name: str) -> float:
        return (self.last.get(name, 0.0) - self.first.get(name, 0.0)) * self.scale

    def over(self, instances: list[str], *kinds: str) -> Iterator[float]:
        return (sum((self[f"{kind}@{name}"] for name in instances), 0.0) for kind in kinds)


def request_window(increase: Increase, seconds: float) -> RequestWindow:
    names = ("offered", "met", "ttft_met", "completed", "prompt", "output")
    offered, met, ttft_met, completed, prompt, output = (increase[name] for name in names)
    return RequestWindow(
        seconds, increase.count, offered, met, ttft_met, completed, prompt, output, 0.0
    )
