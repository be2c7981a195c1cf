"""More requests than the prefills take: they reject, and the gateways forward on demand.

One gateway alone seldom meets a rejection: hints tell it what is free. Two that do not know of
each other do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support import scenarios as s
from tests.support.installed import NAMESPACE, SERVICE, Installed, fetch
from tests.support.traffic import Outcome, client, stream

from pdserve.engines.reference.metrics import PATH_VLLM, VLLM_WAITING
from pdserve.wire import names

pytestmark = pytest.mark.cluster

AT_ONCE = 48
"""Far more than the four slots of each of the two prefills of `chat`."""


def total(page: str, metric: str, **labels: str) -> float:
    """Sum of a metric's series that have these labels."""
    found = 0.0
    for line in re.findall(rf"^{re.escape(metric)}{{.*$", page, re.M):
        if all(f'{key}="{value}"' in line for key, value in labels.items()):
            found += float(line.rsplit(" ", 1)[1])
    return found


@pytest.mark.invariant(1)
def test_a_burst_is_rejected_forwarded_and_served(
    installed: Installed,
    shop_service: Mapping[str, float],
    record_property: Callable[[str, object], None],
) -> None:
    cluster = installed.cluster
    s.wait_service(cluster, NAMESPACE, SERVICE)
    gateways = s.wait_gateways(cluster, NAMESPACE, SERVICE, 2)
    urls = [cluster.url(gateway) for gateway in gateways]
    metrics = [cluster.url(gateway, names.PORT_METRICS) for gateway in gateways]
    prefills = [cluster.url(p) for p in s.pods(cluster, NAMESPACE, role="prefill", scenario="chat")]
    assert len(prefills) == 2

    def seen() -> tuple[float, float]:
        """Legs tried and legs rejected by prefills so far, as the gateways count."""
        pages = [fetch(f"{url}/metrics") for url in metrics]
        of = {"scenario": "chat", "leg": "prefill"}
        return (
            sum(total(page, "pdserve_gateway_attempts_total", **of) for page in pages),
            sum(total(page, "pdserve_gateway_rejections_total", **of) for page in pages),
        )

    tried, rejected = seen()
    outcomes = [Outcome(time.monotonic()) for _ in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        through = [client(url) for url in urls]
        for number, outcome in enumerate(outcomes):
            prompt = f"Burst, number {number}: " + "the sea and the ships " * 8
            pool.submit(stream, through[number % 2], prompt, 4, outcome)
    assert [o.error for o in outcomes if o.error] == []
    assert all(o.tokens for o in outcomes)
    attempts, rejections = (now - then for now, then in zip(seen(), (tried, rejected), strict=True))
    record_property("attempts", int(attempts))
    record_property("rejections", int(rejections))
    assert rejections > 0, "the burst fitted: nothing was shown"
    assert attempts == AT_ONCE + rejections, "each rejected leg was tried again, none twice served"
    for prefill in prefills:
        assert total(fetch(prefill + PATH_VLLM), VLLM_WAITING) == 0, "nothing waits in an instance"
