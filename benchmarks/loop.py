"""The ratio loop beside Kubernetes' HPA rule, in the demo's cluster, on the same requests.

Run by `make bench-loop`, about ten minutes; progress on standard error. Two services of the demo's
scenario chat, alike but for who sets their counts: pdserve's loop, or the rule of a
HorizontalPodAutoscaler on each role (`pdserve.sim.policies.hpa`: 70 % of its slots, a tolerance of
10 %, shrinking to the largest desire of a window). Every request goes to both in the same moment.
The mix shifts from long answers to long prompts. All periods are a sixth of their defaults, the
HPA's as well: it looks every 2.5 s and shrinks by the last 50 s.

Everything runs in a local cluster under build/bench/cluster, which ends with this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import OUT, ROOT, Progress, Row, concluded
from prometheus_api_client import PrometheusApiClientException, PrometheusConnect

from localcluster import binaries
from localcluster.cluster import LocalCluster
from localcluster.demo import fixed
from localcluster.demo.judge import CHAT_TTFT, DEVICES_EACH
from localcluster.demo.stage import (
    CHAT,
    SERVICE,
    DemoError,
    Periods,
    Stage,
    condition,
    install,
    start_cluster,
    until,
)
from localcluster.demo.text import chat
from localcluster.demo.watch import Watch, watching
from localcluster.errors import LocalError
from pdserve.cli.load import Planned, Sample, merge, poisson, run_load
from pdserve.cli.snapshot import SERVICES
from pdserve.kube.connect import connect
from pdserve.kube.errors import KubeError
from pdserve.sim.policies.hpa import TARGET, Stabiliser, desired
from pdserve.terms import ROLES, Role
from pdserve.terms.json import JsonObject

SHIFT, END = 40.0, 140.0
"""When the mix shifts, and when the last request is sent: seconds since the first."""
SIXTH = 6.0
HPA_PERIOD, HPA_WINDOW, HPA_METRIC = 15.0 / SIXTH, 300.0 / SIXTH, 60.0 / SIXTH
OWN, RIVAL = "with-loop", "with-hpa"
"""Namespaces."""
START: dict[Role, int] = {"prefill": 2, "decode": 4}
MOST = 6
"""Instances of a role; at least one."""
_BUSY = {"prefill": "executing|holding", "decode": "running|prefetching"}


@dataclass
class Run:
    """One side of one repetition."""

    watch: Watch
    samples: list[Sample]

    def attainment(self) -> float:
        """Share (0 to 1) of the requests after the shift whose first token came in time."""
        after = [s for s in self.samples if s.at >= SHIFT]
        return sum(s.ok and s.ttft is not None and s.ttft <= CHAT_TTFT for s in after) / len(after)

    def device_seconds(self) -> float:
        """Devices times seconds held after the shift: what is wanted or still serves is held."""
        total, sights = 0.0, [s for s in self.watch.sights if s.at < END]
        for s, end in zip(sights, [*(n.at for n in sights[1:]), END], strict=True):
            held = max(s.prefill, s.prefill_ready) + max(s.decode, s.decode_ready)
            total += held * DEVICES_EACH * max(0.0, end - max(s.at, SHIFT))
        return total

    def course(self) -> str:
        """Wanted counts over time, and the share in time of each 20 s, in words."""
        said, last = [], (0, 0)
        for s in self.watch.sights:
            if (s.prefill, s.decode) != last:
                last = s.prefill, s.decode
                said.append(f"{s.at:.0f} s {s.prefill}P{s.decode}D")
        shares = []
        for start in range(0, int(END), 20):
            here = [s for s in self.samples if start <= s.at < start + 20]
            met = sum(s.ok and s.ttft is not None and s.ttft <= CHAT_TTFT for s in here)
            shares.append(f"{100 * met / max(1, len(here)):.0f}")
        return f"{', '.join(said)}; % in time by 20 s: {' '.join(shares)}"


def schedule(seed: int) -> list[Planned]:
    """The same requests for both sides."""
    rng = random.Random(seed)
    return merge(
        poisson(2.2, SHIFT, lambda i: chat(i, words=25, tokens=45), rng),
        poisson(3.3, END - SHIFT, lambda i: chat(i, words=190, tokens=6), rng, start=SHIFT),
    )


def manifests() -> dict[str, JsonObject]:
    """The PDService of either side, by namespace, alike but for who sets the counts."""
    demo = yaml.safe_load((ROOT / "examples/demo-pdservice.yaml").read_text())
    for scenario in demo["spec"]["scenarios"]:
        scenario["ratio"] |= {role: {"min": 1, "max": MOST} for role in ROLES}
    rival = fixed.manifest(demo, 1, START["prefill"], START["decode"])
    own = fixed.manifest(demo, 1, START["prefill"], START["decode"])
    own["spec"]["scenarios"][0]["ratio"] |= {"mode": "Auto"}
    del own["spec"]["scenarios"][0]["ratio"]["fixed"]
    for namespace, service in ((OWN, own), (RIVAL, rival)):
        service["metadata"]["namespace"] = namespace
    return {OWN: own, RIVAL: rival}


class HpaRule:
    """Sets the counts of the rival by the rule of an HPA on each role."""

    def __init__(self, stage: Stage, bounds: JsonObject) -> None:
        """`bounds`: `min` and `max` instances by role."""
        self._stage, self._bounds = stage, bounds
        self._prometheus = PrometheusConnect(url=stage.prometheus_url)
        self._counts = dict(START)
        self._settled = {role: Stabiliser(HPA_WINDOW) for role in ROLES}

    async def follow(self) -> None:
        """Look and set until cancelled."""
        loop, patched = asyncio.get_running_loop(), dict(self._counts)
        while True:
            for role in ROLES:
                values = await asyncio.to_thread(self._values, role)
                wanted = desired(self._counts[role], values, TARGET)
                wanted = self._settled[role].settle(loop.time(), self._counts[role], wanted)
                low, high = self._bounds[role]["min"], self._bounds[role]["max"]
                self._counts[role] = min(high, max(low, wanted))
            if self._counts != patched:
                patched = dict(self._counts)
                path = "/spec/scenarios/0/ratio/fixed"
                value = {"groups": 1, **patched}
                patch = json.dumps([{"op": "replace", "path": path, "value": value}])
                await self._stage.kubectl(
                    "-n", RIVAL, "patch", "pds", SERVICE, "--type=json", "-p", patch
                )
            await asyncio.sleep(HPA_PERIOD)

    def _values(self, role: Role) -> list[float]:
        """Share of its slots that each instance used, on average over the window."""
        busy = f'pdserve_engine_slots{{namespace="{RIVAL}",role="{role}",state=~"{_BUSY[role]}"}}'
        total = f'pdserve_engine_slots{{namespace="{RIVAL}",role="{role}",state="total"}}'
        query = (
            f"sum by (pod) (avg_over_time({busy}[{HPA_METRIC:g}s]))"
            f" / sum by (pod) (last_over_time({total}[{HPA_METRIC:g}s]))"
        )
        try:
            rows = self._prometheus.custom_query(query, timeout=5)
        except (PrometheusApiClientException, OSError):
            return []
        return [float(row["value"][1]) for row in rows]


async def repetition(stage: Stage, seed: int, progress: Progress) -> dict[str, Run]:
    """Both sides come up, get the same requests, and go."""
    services = manifests()
    for service in services.values():
        await stage.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(service))
    urls = {namespace: await _address(stage, namespace) for namespace in services}
    planned = schedule(seed)
    progress(f"seed {seed}: both Ready; {len(planned)} requests in {END:.0f} s to each")
    hpa = HpaRule(stage, services[RIVAL]["spec"]["scenarios"][0]["ratio"])
    async with watching(stage, CHAT, OWN) as own, watching(stage, CHAT, RIVAL) as rival:
        task = asyncio.create_task(hpa.follow())
        try:
            sent = await asyncio.gather(*(run_load(urls[n], planned) for n in (OWN, RIVAL)))
        finally:
            task.cancel()
    for namespace in services:
        await stage.kubectl("-n", namespace, "delete", "pds", SERVICE, "--timeout=90s")
        await until(lambda n=namespace: _gone(stage, n), 90, "the pods of the last run gone")
    runs = {OWN: Run(own, sent[0]), RIVAL: Run(rival, sent[1])}
    for name, run in runs.items():
        progress(
            f"{name}: {run.attainment():.1%} in time, {run.device_seconds():.0f} device-seconds; "
            f"{run.course()}"
        )
    return runs


async def _gone(stage: Stage, namespace: str) -> bool:
    return not await stage.pods("", namespace)


async def _address(stage: Stage, namespace: str) -> str:
    async def ready() -> bool:
        service = await stage.client.get(SERVICES, SERVICE, namespace)
        return condition(service, "Ready") == "True"

    await until(ready, 90, f"the service {namespace} Ready")
    return await stage.gateway(SERVICE, namespace)


def rows_of(runs: Sequence[dict[str, Run]]) -> list[Row]:
    """Medians of the repetitions."""

    def row(what: str, unit: str, values: dict[str, list[float]], **judged: object) -> Row:
        own, rival = values[OWN], values[RIVAL]
        return Row(
            what, median(own), unit, "HPA rule", median(rival),
            n=len(own), spread=max(own) - min(own), **judged,  # type: ignore[arg-type]  # judged: floor and better
        )  # fmt: skip

    seconds = {n: [run[n].device_seconds() for run in runs] for n in (OWN, RIVAL)}
    shares = {n: [run[n].attainment() for run in runs] for n in (OWN, RIVAL)}
    return [
        row("devices held after the shift", "device-seconds", seconds, floor=1.0, better="lower"),
        row("first token in time after the shift", "share", shares, floor=0.99, better="higher"),
    ]


async def measure(arguments: argparse.Namespace, cluster: LocalCluster) -> list[Row]:
    """All repetitions in one cluster.

    Raises:
        AssertionError: the cluster or a service did not come up.
    """
    progress = Progress()
    start_cluster(cluster, ROOT, progress, keep=False)
    client = await connect(cluster.kubeconfig)
    try:
        stage = Stage(cluster, ROOT, binaries.kube().path("kubectl"), binaries.helm(), client)
        await install(stage, Periods(), progress)
        await stage.kubectl("apply", "-f", str(ROOT / "examples/demo-rocedomain.yaml"))
        for namespace in (OWN, RIVAL):
            await stage.kubectl("create", "namespace", namespace)
        seeds = range(arguments.seed, arguments.seed + arguments.repeat)
        return rows_of([await repetition(stage, seed, progress) for seed in seeds])
    except (DemoError, LocalError, KubeError) as error:
        raise AssertionError(str(error)) from error
    finally:
        await client.close()


@contextmanager
def _cluster() -> Iterator[LocalCluster]:
    state = OUT / "cluster"
    shutil.rmtree(state, ignore_errors=True)
    cluster = LocalCluster("bench-loop", state)
    try:
        yield cluster
    finally:
        cluster.down()


def main() -> int:
    """Run it; the exit status of `harness.concluded`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions (%(default)s)")
    parser.add_argument("--seed", type=int, default=11, help="of the first (%(default)s)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _cluster() as cluster:
        return concluded("loop", measure(arguments, cluster))


if __name__ == "__main__":
    raise SystemExit(main())
