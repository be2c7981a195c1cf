"""Steps 1, 2 and 4 of the demo: each acts as a user and measures. 3 is `shift`, 5 `window`.

A step claims, measures and compares; it never repairs. Limits come from the project's goals and
are part of the claim's text.
"""

from __future__ import annotations

import asyncio
import random
import time

from localcluster.demo import figures
from localcluster.demo.report import Report, ResultLine
from localcluster.demo.stage import (
    CHAT,
    NAMESPACE,
    SERVICE,
    Stage,
    condition,
    until,
)
from localcluster.demo.text import MODEL, chat, in_words, prompt
from localcluster.demo.watch import instances, watching
from localcluster.errors import Progress
from pdserve import __version__
from pdserve.cli.load import Ask, LoadOptions, Planned, poisson, run_load
from pdserve.cli.snapshot import GROUPS, SERVICES
from pdserve.kube.resource import PODS, Object
from pdserve.terms.json import JsonObject
from pdserve.wire import names

READY_LIMIT = 30.0
RECOVERY_LIMIT = 15.0


async def come_up(stage: Stage, report: Report, progress: Progress) -> None:
    """1. Two scenarios come up, placed as whole groups."""
    await stage.kubectl("apply", "-f", str(stage.root / "examples/demo-rocedomain.yaml"))
    began = time.monotonic()
    await stage.kubectl("apply", "-f", str(stage.root / "examples/demo-pdservice.yaml"))

    async def ready() -> bool:
        service = await stage.client.get(SERVICES, SERVICE, NAMESPACE)
        return condition(service, "Ready") == "True"

    await until(ready, 4 * READY_LIMIT, "PDService demo Ready")
    took = time.monotonic() - began
    progress(f"PDService demo is Ready {took:.1f} s after apply")
    report.claims.append(
        ResultLine(
            "ready",
            f"two scenarios are ready within {READY_LIMIT:g} s of kubectl apply",
            f"{took:.1f} s",
            took <= READY_LIMIT,
        )
    )
    pods = await stage.pods(names.LABEL_INSTANCE)
    astray = [p["metadata"]["name"] for p in pods if p["spec"].get("nodeName") != _pin(p)]
    groups = [
        await stage.client.get(GROUPS, f"{SERVICE}-{s}", NAMESPACE) for s in ("chat", "search")
    ]
    cells = {
        g["spec"]["scenario"]: ", ".join(s["cells"])
        for g in groups
        for s in g["status"].get("groups", ())
    }
    crossing = [s["crossLeafPercent"] for g in groups for s in g["status"].get("groups", ())]
    report.claims += [
        ResultLine(
            "planned-nodes",
            "every pod runs on the node that its plan named",
            f"{len(pods) - len(astray)} of {len(pods)}" + (f"; not: {astray}" if astray else ""),
            bool(pods) and not astray,
        ),
        ResultLine(
            "balanced-cells",
            "nothing has to cross leaves: a group is under one, or has its ratio under each",
            in_words("; ".join(f"{k}: {v}" for k, v in cells.items())),
            bool(crossing) and not any(crossing),
        ),
    ]
    stage.gateway_url = await stage.gateway(SERVICE)


async def same_text(stage: Stage, report: Report, progress: Progress) -> None:
    """2. Text through prefill and decode equals the aggregated answer."""
    await stage.kubectl("apply", "-f", "-", stdin=_AGGREGATED)

    async def address() -> str:
        [pod] = await stage.pods("app=aggregated")
        ready = condition(pod, "Ready") == "True"
        return f"http://{pod['status']['podIP']}:8000" if ready else ""

    aggregated = await until(address, 30, "the aggregated engine")
    sampling: list[JsonObject] = [
        {"temperature": 0},
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1, "top_p": 0.9, "seed": 3},
    ]
    asks = [
        Ask(MODEL, prompt(5 + 20 * i, i), 24, chat=i % 2 == 0, stream=i % 3 != 0, extra=extra)
        for i, extra in enumerate(sampling * 3)
    ]
    keep = LoadOptions(keep_text=True)
    schedule = [Planned(0.3 * i, ask) for i, ask in enumerate(asks)]
    split, whole = await asyncio.gather(
        run_load(stage.gateway_url, schedule, keep), run_load(aggregated, schedule, keep)
    )
    equal = sum(a.ok and b.ok and a.text == b.text for a, b in zip(split, whole, strict=True))
    progress(f"asked: {asks[2].prompt[:60]}...")
    progress(f"answer: {(split[2].text or '').strip()[:90]!r}")
    report.claims.append(
        ResultLine(
            "equal-text",
            "text from prefill and decode equals that of one engine, greedy and sampled",
            f"{equal} of {len(asks)} answers equal",
            equal == len(asks),
        )
    )
    await stage.kubectl("delete", "pod", "aggregated", "--wait=false")


async def decode_killed(stage: Stage, report: Report, progress: Progress) -> None:
    """4. A decode instance is killed under load."""
    rng = random.Random(12)  # noqa: S311  a reproducible schedule
    schedule = list(poisson(2.0, 24.0, lambda i: chat(i, words=20, tokens=25), rng))
    selector = f"{names.LABEL_SCENARIO}=chat,{names.LABEL_ROLE}=decode"
    async with watching(stage, CHAT) as watch:
        load = asyncio.create_task(run_load(stage.gateway_url, schedule))
        await asyncio.sleep(5)
        before = await instances(stage, "chat")
        victim = (await stage.pods(selector))[0]["metadata"]
        began, killed_at = time.monotonic(), watch.now()
        await stage.client.delete(PODS, victim["name"], namespace=NAMESPACE, grace=0)
        progress(f"killed {victim['name']}")

        async def whole_again() -> bool:
            group = await stage.client.get(GROUPS, CHAT, NAMESPACE)
            gone, new, _ = before.replaced_by(await instances(stage, "chat"))
            if not (gone and new) or condition(group, "Ready") != "True":
                return False
            # The group's condition may be a moment old; the pods' own are not.
            pods = await stage.pods(f"{names.LABEL_SCENARIO}=chat,{names.LABEL_INSTANCE}")
            whole = len(pods) == len(before.pods)
            return whole and all(condition(p, "Ready") == "True" for p in pods)

        await until(whole_again, 60, "the replacement of the killed decode")
        took = time.monotonic() - began
        after = await instances(stage, "chat")
        progress(f"replaced and Ready after {took:.1f} s")
        samples = await load
    gone, new, restarted = before.replaced_by(after)
    # What could be saved: everything that had not begun to stream when the instance died.
    failed = [s for s in samples if not s.ok and not s.started_streaming]
    cut = [s for s in samples if not s.ok and s.started_streaming]
    report.claims += [
        ResultLine(
            "recovery",
            f"a killed decode instance is replaced and ready within {RECOVERY_LIMIT:g} s",
            f"{took:.1f} s",
            took <= RECOVERY_LIMIT,
        ),
        ResultLine(
            "one-replacement",
            "one fault replaces one instance, and nothing else restarts",
            f"{len(gone)} gone, {len(new)} new, {len(restarted)} restarted",
            len(gone) == len(new) == 1 and not restarted,
        ),
        ResultLine(
            "nothing-lost",
            "no request fails that had not yet begun to stream",
            f"{len(failed)} of {len(samples)} failed; streams cut in mid-answer: {len(cut)}"
            + (f"; e.g. {failed[0].status} {failed[0].error}" if failed else ""),
            not failed,
        ),
    ]
    report.loss.append(figures.loss(watch, killed_at, took, watch.sights[-1].at))


def _pin(pod: Object) -> str | None:
    """The node that the pod's required affinity names."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    for term in required.get("nodeSelectorTerms", ()):
        for field in term.get("matchFields", ()):
            if field["key"] == "metadata.name":
                return str(field["values"][0])
    return None


_AGGREGATED = """
apiVersion: v1
kind: Pod
metadata: {name: aggregated, labels: {app: aggregated}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: engine
    image: pdserve/engine:VERSION
    args: [--role, both, --slots, "8", --model-name, pdserve-tiny]
    readinessProbe: {httpGet: {path: /readyz, port: 8000}, periodSeconds: 1}
""".replace("VERSION", __version__)
