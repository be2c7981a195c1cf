"""The demo's steps. Each does something a user would do, and writes down what it measured.

A step claims, measures and compares; it never repairs. Limits come from the project's goals and
are part of the claim's text.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pdserve import __version__
from pdserve.cli.demo.report import Claim, Plot, Report, Series
from pdserve.cli.demo.stage import (
    NAMESPACE,
    SERVICE,
    DemoError,
    Periods,
    Stage,
    condition,
    until,
)
from pdserve.cli.demo.text import prompt
from pdserve.cli.demo.watch import Watch, instances, watching
from pdserve.cli.load import Ask, LoadOptions, Planned, Sample, merge, poisson, run_load
from pdserve.cli.snapshot import GROUPS, SERVICES
from pdserve.kube.resource import PODS, Object
from pdserve.local.errors import Progress
from pdserve.wire import names

MODEL = "pdserve-tiny"
READY_LIMIT = 30.0
RECOVERY_LIMIT = 15.0
PERIODS_LIMIT = 3
CHAT = f"{SERVICE}-chat"
CHAT_TTFT = 2.0
"""TTFT target of scenario chat in examples/demo-pdservice.yaml, seconds."""
TARGET = 0.9
"""Attainment target there."""

BEFORE, AFTER = 34.0, 66.0
"""Seconds of traffic before and after the mix shifts."""
WINDOW = 10.0
"""Seconds per point of an attainment line."""


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
        Claim(
            "ready",
            f"two scenarios are Ready within {READY_LIMIT:g} s of kubectl apply",
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
        Claim(
            "planned-nodes",
            "every pod runs on the node its plan named",
            f"{len(pods) - len(astray)} of {len(pods)}" + (f"; not: {astray}" if astray else ""),
            bool(pods) and not astray,
        ),
        Claim(
            "balanced-cells",
            "no KV has to cross a leaf: each group sits in one leaf or in balanced cells",
            "; ".join(f"{k}: {v}" for k, v in cells.items()),
            bool(crossing) and not any(crossing),
        ),
    ]
    stage.gateway_url = await _gateway(stage)


async def same_text(stage: Stage, report: Report, progress: Progress) -> None:
    """2. Text through prefill and decode equals the aggregated answer."""
    await stage.kubectl("apply", "-f", "-", stdin=_AGGREGATED)

    async def address() -> str:
        [pod] = await stage.pods("app=aggregated")
        ready = condition(pod, "Ready") == "True"
        return f"http://{pod['status']['podIP']}:8000" if ready else ""

    aggregated = await until(address, 30, "the aggregated engine")
    sampling: list[dict[str, Any]] = [
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
        Claim(
            "equal-text",
            "text through P/D equals the aggregated engine's, greedy and sampled",
            f"{equal} of {len(asks)} answers equal",
            equal == len(asks),
        )
    )
    await stage.kubectl("delete", "pod", "aggregated", "--wait=false")


async def ratio_follows(stage: Stage, periods: Periods, report: Report, progress: Progress) -> None:
    """3. The mix shifts from long answers to long prompts, and the ratio follows."""
    rng = random.Random(11)  # noqa: S311  a reproducible schedule
    schedule = merge(
        poisson(2.2, BEFORE, lambda i: _chat(i, words=25, tokens=45), rng),
        poisson(3.3, AFTER, lambda i: _chat(i, words=190, tokens=6), rng, start=BEFORE),
        poisson(0.4, BEFORE + AFTER, _search, rng),
    )
    progress(
        f"{len(schedule)} requests in {BEFORE + AFTER:.0f} s; at {BEFORE:.0f} s chat shifts from "
        "short prompts and long answers to long prompts and short answers"
    )
    async with watching(stage, CHAT) as watch:
        teller = asyncio.create_task(_tell(watch, progress))
        samples = await run_load(stage.gateway_url, schedule)
        teller.cancel()
    chat = [s for s in samples if s.label == "chat"]
    _judge_ratio(watch, chat, periods, report)
    report.plots += [_ratio_plot(watch), _attainment_plot(samples), _ttft_plot(samples)]


async def decode_killed(stage: Stage, report: Report, progress: Progress) -> None:
    """4. A decode instance is killed under load."""
    rng = random.Random(12)  # noqa: S311  a reproducible schedule
    schedule = list(poisson(2.0, 24.0, lambda i: _chat(i, words=20, tokens=25), rng))
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
        Claim(
            "recovery",
            f"a killed decode is replaced and Ready within {RECOVERY_LIMIT:g} s",
            f"{took:.1f} s",
            took <= RECOVERY_LIMIT,
        ),
        Claim(
            "one-replacement",
            "one fault replaces one instance, and nothing else restarts",
            f"{len(gone)} gone, {len(new)} new, {len(restarted)} restarted",
            len(gone) == len(new) == 1 and not restarted,
        ),
        Claim(
            "nothing-lost",
            "no request fails that had not yet begun to stream",
            f"{len(failed)} of {len(samples)} failed; {len(cut)} streams were cut in mid-answer"
            + (f"; e.g. {failed[0].status} {failed[0].error}" if failed else ""),
            not failed,
        ),
    ]
    report.plots.append(_recovery_plot(watch, killed_at))


def _chat(i: int, *, words: int, tokens: int) -> Ask:
    return Ask(MODEL, prompt(words, i), tokens, label="chat", extra={"ignore_eos": True})


def _search(i: int) -> Ask:
    return Ask(
        MODEL, prompt(110, 1000 + i), 8,
        label="search", extra={"ignore_eos": True}, headers={"x-scenario": "search"},
    )  # fmt: skip


def _judge_ratio(watch: Watch, chat: Sequence[Sample], periods: Periods, report: Report) -> None:
    p0, d0 = watch.counts_at(BEFORE)
    towards = [s for s in watch.sights if s.at > BEFORE and s.prefill * d0 > p0 * s.decode]
    first = towards[0] if towards else None
    took = (first.at - BEFORE) / periods.control if first else float("inf")
    p1, d1 = watch.counts_at(watch.sights[-1].at)
    changed = f"{p0}P{d0}D -> {p1}P{d1}D" + (
        f", first step after {took * periods.control:.0f} s = {took:.1f} control periods"
        if first
        else ""
    )
    report.claims.append(
        Claim(
            "ratio-direction",
            f"after the shift the share of prefill grows within {PERIODS_LIMIT} control periods",
            changed,
            took <= PERIODS_LIMIT,
        )
    )
    shift = _attainment([s for s in chat if BEFORE <= s.at < BEFORE + 2 * WINDOW])
    end = _attainment([s for s in chat if s.at >= BEFORE + AFTER - 2 * WINDOW])
    calm = _attainment([s for s in chat if s.at < BEFORE])
    report.claims.append(
        Claim(
            "ttft-recovers",
            f"TTFT attainment of all offered requests recovers to {TARGET:.0%}",
            f"before {calm:.0%}, just after the shift {shift:.0%}, at the end {end:.0%}",
            end >= TARGET,
        )
    )


def _attainment(samples: Iterable[Sample]) -> float:
    """Share of all offered whose first token came in time; what was refused counts as missed."""
    everyone = list(samples)
    met = sum(s.ok and s.ttft is not None and s.ttft <= CHAT_TTFT for s in everyone)
    return met / len(everyone) if everyone else float("nan")


async def _tell(watch: Watch, progress: Progress) -> None:
    """Say each change of the counts as it happens."""
    told: tuple[int, int] | None = None
    while True:
        if watch.sights:
            s = watch.sights[-1]
            if told not in (None, (s.prefill, s.decode)):
                why = watch.decisions[-1]["message"] if watch.decisions else ""
                progress(f"{s.at:4.0f} s: chat is to be {s.prefill}P{s.decode}D  {why[:150]}")
            told = (s.prefill, s.decode)
        await asyncio.sleep(0.5)


def _ratio_plot(watch: Watch) -> Plot:
    x = [s.at for s in watch.sights]
    return Plot(
        "Scenario chat: instances, wanted and ready",
        "instances",
        [
            Series("prefill wanted", x, [s.prefill for s in watch.sights], step=True),
            Series("decode wanted", x, [s.decode for s in watch.sights], step=True),
            Series("prefill ready", x, [s.prefill_ready for s in watch.sights], step=True),
            Series("decode ready", x, [s.decode_ready for s in watch.sights], step=True),
        ],
        marks=[(BEFORE, "mix shifts")],
    )


def _attainment_plot(samples: Sequence[Sample]) -> Plot:
    chat = [s for s in samples if s.label == "chat"]
    starts = [i * WINDOW for i in range(int((BEFORE + AFTER) / WINDOW))]
    values = [_attainment([s for s in chat if a <= s.at < a + WINDOW]) * 100 for a in starts]
    return Plot(
        "TTFT attainment of all offered chat requests, by arrival",
        "percent",
        [Series(f"{WINDOW:g} s windows", starts, values, step=True)],
        marks=[(BEFORE, "mix shifts")],
        target=(TARGET * 100, "target"),
    )


def _ttft_plot(samples: Sequence[Sample]) -> Plot:
    done = [s for s in samples if s.ok and s.ttft is not None]
    return Plot(
        "TTFT of every completed request, by arrival",
        "seconds",
        [
            Series(
                label,
                [s.at for s in done if s.label == label],
                [s.ttft or 0.0 for s in done if s.label == label],
            )
            for label in ("chat", "search")
        ],
        marks=[(BEFORE, "mix shifts")],
        target=(CHAT_TTFT, "chat target"),
        dots=True,
    )


def _recovery_plot(watch: Watch, killed_at: float) -> Plot:
    x = [s.at for s in watch.sights]
    return Plot(
        "Scenario chat: ready decode instances while one is killed",
        "instances",
        [
            Series("decode wanted", x, [s.decode for s in watch.sights], step=True),
            Series("decode ready", x, [s.decode_ready for s in watch.sights], step=True),
        ],
        marks=[(killed_at, "killed")],
    )


def _pin(pod: Object) -> str | None:
    """The node that the pod's required affinity names."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    for term in required.get("nodeSelectorTerms", ()):
        for field in term.get("matchFields", ()):
            if field["key"] == "metadata.name":
                return str(field["values"][0])
    return None


async def _gateway(stage: Stage) -> str:
    pods = await stage.pods(f"{names.LABEL_SERVICE}={SERVICE},{names.LABEL_COMPONENT}=gateway")
    ready = [p for p in pods if condition(p, "Ready") == "True"]
    if not ready:
        raise DemoError("no gateway pod is Ready though the PDService is")
    return f"http://{ready[0]['status']['podIP']}:{names.PORT_HTTP}"


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
