"""From nothing to serving, and back after a fault: how long, and what the operator costs.

Run by `make bench-start`, under four minutes; progress on standard error. Every row has its own
yardstick from the same minutes: the same control plane with fewer parts, or a plain Deployment of
as many aggregated engine pods of the same image on the same nodes. What is above 1 is therefore
what prefill/decode costs over that. Floors are two to three times what quiet and busy machines
showed: a product that got several times worse fails, a busy neighbour does not.

Everything runs in a local cluster under build/bench/cluster, which ends with this process.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import OUT, ROOT, Progress, Row, report
from benchmarks.parts import operator_cost
from benchmarks.parts.cluster import (
    MODEL,
    NAMESPACE,
    BenchError,
    Rival,
    gateway_url,
    install,
    plain,
    pod_url,
    service,
    start_cluster,
)

from localcluster import binaries
from localcluster.cluster import LocalCluster
from localcluster.controlplane import Components, ControlPlane
from localcluster.errors import LocalError
from pdserve.cli.load import Ask, Planned, run_load
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import connect
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import DEPLOYMENTS, PODS
from pdserve.wire import names

TRIES = 3
REQUESTS = 25
PROMPT = "the quick brown fox jumps over the lazy dog " * 5
DECODES = f"{names.LABEL_SCENARIO}=chat,{names.LABEL_ROLE}=decode"


def control_plane_row(progress: Progress) -> Row:
    """Start of a control plane, whole and without controllers and scheduler, in turns."""
    binaries.kube(progress)
    times: dict[Components, list[float]] = {Components.FULL: [], Components.API: []}
    with tempfile.TemporaryDirectory(prefix="pdserve-bench-") as directory:
        for number in range(TRIES):
            for components, taken in times.items():
                state = Path(directory) / f"{components.value}-{number}"
                plane = ControlPlane(state, components=components)
                began = time.monotonic()
                try:
                    plane.start()
                    taken.append(time.monotonic() - began)
                finally:
                    plane.stop()
                progress(f"control plane ({components.value}) ready in {taken[-1]:.1f} s")
    full, api = median(times[Components.FULL]), median(times[Components.API])
    return Row("control plane ready", full, "s", "etcd and API server alone", api, 6, "lower")


async def ready_row(client: KubeClient, progress: Progress) -> tuple[Row, Rival, Rival]:
    """Apply to Ready, in turns; the rivals of the last turn stay."""
    took: list[float] = []
    usual: list[float] = []
    for number in range(TRIES):
        pd, deployment = service(client, f"bench-{number}"), plain(client)
        usual.append(await deployment.come())
        took.append(await pd.come())
        progress(f"PDService Ready in {took[-1]:.1f} s, Deployment in {usual[-1]:.1f} s")
        if number + 1 < TRIES:
            await asyncio.gather(pd.go(), deployment.go())
    row = Row(
        "PDService apply to Ready, 2 scenarios, 6 instances", median(took), "s",
        "Deployment of 6 aggregated engines", median(usual), 4, "lower",
    )  # fmt: skip
    return row, pd, deployment


async def first_token_row(client: KubeClient, pd: Rival, deployment: Rival) -> Row:
    """A streamed request at a time, alternating: gateway, then one aggregated engine.

    Raises:
        BenchError: a request failed.
    """
    urls = (await gateway_url(client, pd.name), pod_url((await deployment.pods())[0]))
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(REQUESTS):
        # No prompt twice: a cached prefix would be measured instead.
        ask = Ask(MODEL, f"{number} {PROMPT}", 4, extra={"ignore_eos": True})
        for url, taken in zip(urls, times, strict=True):
            [sample] = await run_load(url, [Planned(0.0, ask)])
            if not sample.ok or sample.ttft is None:
                raise BenchError(f"a request to {url} failed: {sample.status} {sample.error}")
            taken.append(sample.ttft * 1000)
    gateway, direct = (median(taken) for taken in times)
    return Row(
        "first token through the gateway", gateway, "ms",
        "directly from an aggregated engine", direct, 4, "lower",
    )  # fmt: skip


async def recovery_rows(
    cluster: LocalCluster, pd: Rival, deployment: Rival, progress: Progress
) -> list[Row]:
    """A decode deleted by force; an engine's process killed, each try another's (back-off)."""
    lost: list[float] = []
    lost_plain: list[float] = []
    for _ in range(TRIES):
        lost.append(await pd.delete_pod(DECODES))
        lost_plain.append(await deployment.delete_pod())
        progress(f"decode replaced in {lost[-1]:.1f} s, plain pod in {lost_plain[-1]:.1f} s")
    killed: list[float] = []
    killed_plain: list[float] = []
    for index in range(TRIES):
        killed.append(await pd.kill_engine(cluster, index))
        killed_plain.append(await deployment.kill_engine(cluster, index))
        progress(f"engine back in {killed[-1]:.1f} s, plain one in {killed_plain[-1]:.1f} s")
    return [
        Row(
            "decode force-deleted to Ready again", median(lost), "s",
            "plain pod force-deleted to Available", median(lost_plain), 3, "lower",
        ),
        Row(
            "engine killed, restarted in place, linked, Ready", median(killed), "s",
            "plain engine killed to Available", median(killed_plain), 3, "lower",
        ),
    ]  # fmt: skip


async def operator_rows(
    client: KubeClient, cluster: LocalCluster, pd: Rival, progress: Progress
) -> list[Row]:
    """The installed operator is sent away; one of the bench's own takes its place."""
    group = names.scenario_group_name(pd.name, "chat")
    await client.patch_json(
        DEPLOYMENTS, "pdserve-operator",
        [{"op": "replace", "path": "/spec/replicas", "value": 0}], namespace="pdserve-system",
    )  # fmt: skip
    log = cluster.log.parent / "bench-operator.log"
    idle = await operator_cost.idle_operator(cluster.kubeconfig, log)
    get = median([await operator_cost.get_cpu_ms(client, group) for _ in range(TRIES)])
    progress(f"{idle.reconciles} reconciles of unchanged objects: {idle.cpu_ms:.0f} ms of CPU")
    [pod] = (await client.list(PODS, NAMESPACE, label_selector=DECODES, page_size=1)).items[:1]
    events = [await operator_cost.event_cpu_us(pod) for _ in range(TRIES)]
    event, parse = (median(values) for values in zip(*events, strict=True))
    return [
        Row(
            "CPU per reconcile of an unchanged object", idle.cpu_ms / idle.reconciles, "ms",
            "one GET and parse of a ScenarioGroup", get, 15, "lower",
        ),
        Row(
            "writes to the API server meanwhile", idle.writes, "requests",
            "reconciles in that time", idle.reconciles, 0, "lower",
        ),
        Row(
            "operator resident memory", idle.rss_mib, "MiB",
            "process that imported kopf and kubernetes", operator_cost.bare_rss_mib(), 2, "lower",
        ),
        Row(
            "cache: CPU per pod event, parsing included", event, "us",
            "parsing that event", parse, 8, "lower",
        ),
    ]  # fmt: skip


async def cluster_rows(cluster: LocalCluster, progress: Progress) -> list[Row]:
    """Everything that needs the cluster."""
    client = await connect(cluster.kubeconfig, rate=1000, burst=1000)
    try:
        ready, pd, deployment = await ready_row(client, progress)
        first = await first_token_row(client, pd, deployment)
        recovery = await recovery_rows(cluster, pd, deployment, progress)
        return [ready, first, *recovery, *await operator_rows(client, cluster, pd, progress)]
    finally:
        await client.close()


def main() -> int:
    """0: every floor held; 1: one failed, or the bench could not go on; 130: interrupted."""
    argparse.ArgumentParser(prog="make bench-start", description=__doc__).parse_args()
    # A terminated bench cleans up like an interrupted one; shells start background jobs deaf to
    # SIGINT, so that is set as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    progress = Progress()
    cluster = LocalCluster("bench", OUT / "cluster")
    try:
        rows = [control_plane_row(progress)]
        cluster.down()
        start_cluster(cluster, ROOT, progress)
        install(cluster, ROOT)
        progress("pdserve installed")
        rows += asyncio.run(cluster_rows(cluster, progress))
    except (BenchError, LocalError, KubeError) as error:
        print(f"the bench stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        _end(cluster)
    return report("start", rows)


def _end(cluster: LocalCluster) -> None:
    """End the cluster; its logs stay beside the results."""
    logs, kept = cluster.log.parent, OUT / "start-logs"
    if logs.is_dir():
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(logs, kept)
    cluster.down()


if __name__ == "__main__":
    sys.exit(main())
