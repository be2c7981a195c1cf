"""Step 6 of the demo, with `--model`: a real chat model answers through prefill and decode.

Its instances compute at this machine's full speed, while those of the other steps are paced: so it
is a step of its own, after them, with a few requests, one at a time. `PDService` real-model is
examples/smollm2-135m with the model's name and path. Beside it runs one engine that does prefill
and decode itself, with the same weights and arguments: its answers are what each answer through
prefill and decode is compared with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import yaml

from localcluster.demo.report import Answer, Report, ResultLine
from localcluster.demo.stage import NAMESPACE, Stage, condition, until
from localcluster.errors import Progress
from pdserve.cli.load import Ask, LoadOptions, Planned, Sample, run_load
from pdserve.cli.snapshot import SERVICES
from pdserve.kube.resource import Object
from pdserve.models.catalog import IN_CONTAINERS
from pdserve.models.store import StoredModel
from pdserve.terms.json import JsonObject
from pdserve.wire import calls, names

SERVICE = "real-model"
READY_SECONDS = 180
PATIENCE = 120.0
"""Seconds that one answer may take."""
_EXAMPLE = "examples/smollm2-135m/pdservice.yaml"
_AGGREGATED = "real-model-aggregated"
_RSS = "process_resident_memory_bytes "


@dataclass(frozen=True)
class DemoQuestion:
    """What a user asks, and how the answer is sampled."""

    text: str
    tokens: int
    """Most tokens of the answer."""
    sampling: JsonObject


QUESTIONS = (
    DemoQuestion("What is the capital of France?", 32, {"temperature": 0}),
    DemoQuestion("Name three fruits.", 32, {"temperature": 0}),
    DemoQuestion("What is the opposite of hot?", 32, {"temperature": 0}),
    DemoQuestion("Write one sentence about the sea.", 32, {"temperature": 0}),
    DemoQuestion("Give me a good name for a cat.", 32, {"temperature": 0.7, "seed": 7}),
)


def service_manifest(example: JsonObject, model: StoredModel, domain: str) -> JsonObject:
    """The example's PDService for `model` in RoCEDomain `domain`.

    Raises:
        KeyError: `example` is not a PDService.
    """
    spec: JsonObject = {
        **example["spec"],
        "model": {"name": model.name, "source": {"path": path_of(model)}},
        "fabric": {**example["spec"]["fabric"], "domainRef": {"name": domain}},
    }
    return {**example, "metadata": {"name": SERVICE}, "spec": spec}


def aggregated_manifest(service: JsonObject) -> JsonObject:
    """A pod that runs one engine of role `both` with model and arguments of the PDService."""
    spec = service["spec"]
    model = spec["model"]
    container = {
        "name": "engine",
        "image": spec["engine"]["image"],
        "args": [
            "--role", "both", "--slots", str(spec["decode"]["maxConcurrency"]),
            "--model-name", model["name"], "--weights", model["source"]["path"],
            *spec["decode"]["args"],
        ],
        "readinessProbe": {
            "httpGet": {"path": calls.PATH_READY, "port": names.PORT_HTTP}, "periodSeconds": 1,
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _AGGREGATED, "labels": {"app": _AGGREGATED}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        },
    }


def path_of(model: StoredModel) -> str:
    """Where the model is in an engine's container."""
    return f"{IN_CONTAINERS}/{model.folder.name}"


async def real_model(
    stage: Stage, model: StoredModel, domain: str, report: Report, progress: Progress
) -> None:
    """5. Real questions, real answers; the PDService stays, the aggregated engine goes.

    Raises:
        DemoError: the service or the engine is not Ready in time.
    """
    example = yaml.safe_load((stage.root / _EXAMPLE).read_text(encoding="utf-8"))
    service = service_manifest(example, model, domain)
    began = time.monotonic()
    await stage.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(service))
    await until(lambda: _serves(stage), READY_SECONDS, f"PDService {SERVICE} Ready")
    ready = time.monotonic() - began
    progress(f"{model.name}: Ready {ready:.1f} s after apply")
    await stage.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(aggregated_manifest(service)))
    try:
        await until(lambda: _aggregated(stage), READY_SECONDS, "the aggregated engine")
        [beside] = await stage.pods(f"app={_AGGREGATED}")
        answers = await _answers(await stage.gateway(SERVICE), _url(beside), model.name, progress)
        instances = await stage.pods(f"{names.LABEL_SERVICE}={SERVICE},{names.LABEL_INSTANCE}")
        memory = {
            str(p["metadata"]["labels"].get(names.LABEL_ROLE, "aggregated")): await _memory(p)
            for p in (*instances, beside)
        }
    finally:
        await stage.kubectl("delete", "pod", _AGGREGATED, "--wait=false")
    report.answers += answers
    report.settings["real model"] = _described(model, ready, answers, memory)
    progress(f"{model.name}: {report.settings['real model']}")
    report.claims.append(claim(model.name, answers))


def claim(model: str, answers: Sequence[Answer]) -> ResultLine:
    """That a real model answers, and alike on both ways."""
    equal = sum(a.equal for a in answers)
    return ResultLine(
        "real-model",
        "a real chat model: its answers through prefill and decode equal those of one engine",
        f"{equal} of {len(answers)} answers of {model} equal; {_speed(answers)}",
        bool(answers) and equal == len(answers),
    )


async def _serves(stage: Stage) -> bool:
    return condition(await stage.client.get(SERVICES, SERVICE, NAMESPACE), "Ready") == "True"


async def _aggregated(stage: Stage) -> bool:
    [pod] = await stage.pods(f"app={_AGGREGATED}")
    return condition(pod, "Ready") == "True"


def _url(pod: Object) -> str:
    return f"http://{pod['status']['podIP']}:{names.PORT_HTTP}"


async def _answers(gateway: str, aggregated: str, model: str, progress: Progress) -> list[Answer]:
    """Ask each question on both ways, one request at a time."""
    answers = []
    for question in QUESTIONS:
        ask = Ask(model, question.text, question.tokens, chat=True, extra=question.sampling)
        split, whole = [await _asked(url, ask) for url in (gateway, aggregated)]
        answer = answered(question.text, split, whole)
        progress(f"asked:  {answer.question}")
        progress(f"answer: {answer.text}")
        progress(f"        {answer.figures}")
        answers.append(answer)
    return answers


async def _asked(url: str, ask: Ask) -> Sample:
    options = LoadOptions(keep_text=True, patience=PATIENCE)
    [sample] = await run_load(url, [Planned(0.0, ask)], options)
    return sample


def answered(question: str, split: Sample, whole: Sample) -> Answer:
    """What came of one question, through prefill and decode (`split`) and of one engine (`whole`).

    Equal only where both are whole and there is a text.
    """
    problem = next((f"{s.status} {s.error}" for s in (split, whole) if not s.ok), "")
    return Answer(
        question,
        text=(split.text or "").strip() or problem,
        prompt_tokens=split.prompt_tokens,
        output_tokens=split.output_tokens,
        first_token=split.ttft or 0.0,
        each_token=split.tpot or 0.0,
        equal=not problem and bool(split.text) and split.text == whole.text,
    )


async def _memory(pod: Object) -> float:
    """Resident memory of the pod's engine in bytes, as its metrics say."""
    async with aiohttp.ClientSession() as session, session.get(_url(pod) + calls.PATH_METRICS) as r:
        lines = (await r.text()).splitlines()
    return next((float(x.removeprefix(_RSS)) for x in lines if x.startswith(_RSS)), 0.0)


def _described(
    model: StoredModel, ready: float, answers: Sequence[Answer], memory: dict[str, float]
) -> str:
    each = ", ".join(f"{role} {size / 1e6:.0f}" for role, size in sorted(memory.items()))
    return (
        f"{model.source}; {model.size / 1e6:.0f} MB of files; Ready {ready:.0f} s after apply; "
        f"resident memory in MB: {each}; {_speed(answers)}"
    )


def _speed(answers: Sequence[Answer]) -> str:
    times = sorted(a.each_token for a in answers if a.each_token > 0)
    if not times:
        return "no speed measured"
    return f"{1 / times[len(times) // 2]:.1f} tokens/s in the median, one request at a time"
