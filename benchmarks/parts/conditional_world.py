"""One prefill and two decodes, paced as devices of a published profile, behind a gateway.

The profile is Llama-2-70B on H100, slowed down so that two cores keep up. The model has one layer
and a long context: what it computes is real, and takes a small part of the profile's times.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.engines import TOKEN, Client, EngineProcess, Group, until
from tests.support.gateway_rig import PushSource, metric_values

from pdserve import refengine
from pdserve.cli.load import Ask, LoadOptions, Sample, poisson, run_load
from pdserve.engines.credentials import Credential
from pdserve.gateway.app import GatewayOptions, GatewayServer
from pdserve.refengine.runtime.pacing import load_profile
from pdserve.terms import Slo
from pdserve.wire import metrics as names
from pdserve.wire.calls import PATH_INFO
from pdserve.wire.routes import (
    LocalPrefillMode,
    RouteGroup,
    RouteInstance,
    RouteScenario,
    RouteTable,
)

PROFILE = "h100-llama2-70b-tp8"
FACTOR = 4.0
"""How much slower than the profile everything is, targets included."""
PREFILL_SLOTS, DECODE_SLOTS, DECODES = 2, 32, 2
OUTPUT = 16
"""Tokens of an answer."""
CONTEXT, LONGEST = 8192, 4096
EVERYTHING = 10_000_000
MODES: dict[str, tuple[LocalPrefillMode, int]] = {
    "Auto": ("Auto", 0),
    "always split": ("Off", 0),
    "never split": ("Fixed", EVERYTHING),
}


def targets(tokens: int) -> Slo:
    """What a prompt of so many tokens must meet, in seconds of the bench."""
    alone = load_profile(PROFILE).prefill_seconds([(0, tokens)])
    return Slo(FACTOR * (0.2 + 2.5 * alone), FACTOR * 0.25, FACTOR * 0.045, 0.9)


def capacity(tokens: int) -> float:
    """Requests a second that the way through the prefill sustains, by the profile alone."""
    profile, answer = load_profile(PROFILE), DECODE_SLOTS * (tokens + OUTPUT)
    batch = profile.prefill_seconds([(0, tokens)] * PREFILL_SLOTS)
    step = profile.decode_seconds(DECODE_SLOTS, answer)
    decodes = DECODES * DECODE_SLOTS / (OUTPUT * step)
    return min(PREFILL_SLOTS / batch, decodes) / FACTOR


@dataclass
class Outcome:
    """What one run came to."""

    goodput: float
    """Requests a second that met every target."""
    offered: float
    local: float
    """Part of the answered prompts that a decode computed."""
    ttft: float
    """Median of those that were answered, in seconds."""
    tpot: float


@dataclass
class ConditionalWorld:
    """The instances, and the gateway before them."""

    url: str
    client: Client
    engines: list[EngineProcess]
    source: PushSource
    version: int = 0

    async def run(self, mode: str, tokens: int, rate: float, seconds: float, seed: int) -> Outcome:
        """Requests for one prompt length in one mode, to a scenario that learned nothing yet."""
        name, slo = f"r{self.version}", targets(tokens)
        await self._route(name, mode, tokens, slo)
        rng = random.Random(seed)

        def ask(_: int) -> Ask:
            prompt = tuple(rng.choices(range(3, 2000), k=tokens))
            extra = {"ignore_eos": True, "temperature": 0}
            return Ask("shop", prompt, OUTPUT, extra=extra)

        schedule = list(poisson(rate, seconds, ask, random.Random(seed)))
        samples = await run_load(self.url, schedule, LoadOptions(patience=300.0))
        met = [s for s in samples if _met(s, slo)]
        done = [s for s in samples if s.ok]
        served = await self._metric(names.GATEWAY_LOCAL_PREFILLS, scenario=name, result="served")
        return Outcome(
            len(met) / seconds, len(samples) / seconds, served / max(1, len(done)),
            _middle([s.ttft for s in done]), _middle([s.tpot for s in done]),
        )  # fmt: skip

    async def late(self) -> float:
        """Part of the instances' steps that ended later than the profile says."""
        answers = [await self.client.call("GET", e.url + PATH_INFO) for e in self.engines]
        paced = [answer.body["paced"] for answer in answers]
        return sum(p["lateSteps"] for p in paced) / max(1, sum(p["steps"] for p in paced))

    async def _route(self, name: str, mode: str, tokens: int, slo: Slo) -> None:
        self.version += 1
        made = tuple(
            RouteInstance(
                e.name, "prefill" if e.role == "prefill" else "decode", e.url,
                PREFILL_SLOTS if e.role == "prefill" else DECODE_SLOTS,
            )
            for e in self.engines
        )  # fmt: skip
        profile = load_profile(PROFILE)
        alone = profile.prefill_seconds([(0, tokens)])
        local, most = MODES[mode]
        scenario = RouteScenario(
            name, slo, (RouteGroup(0, "r1", made),), models=("shop",),
            prefill_seconds=(FACTOR * profile.a, FACTOR * (alone - profile.a) / tokens),
            local_prefill=local, local_prefill_tokens=most,
        )  # fmt: skip
        await self.source.push(
            RouteTable("shop", self.version, "reference", "Reference", (scenario,))
        )

    async def _metric(self, name: str, **labels: str) -> float:
        answer = await self.client.call("GET", self.url + "/metrics")
        return sum(metric_values(str(answer.body), name, labels))


def _met(sample: Sample, slo: Slo) -> bool:
    """Whether a request met every target, as its client saw it."""
    times = ((sample.ttft, slo.ttft), (sample.handoff, slo.handoff), (sample.tpot, slo.tpot))
    return sample.ok and all(seconds is not None and seconds <= most for seconds, most in times)


def _middle(values: list[float | None]) -> float:
    found = sorted(v for v in values if v is not None)
    return found[len(found) // 2] if found else 0.0


@asynccontextmanager
async def conditional_world() -> AsyncIterator[ConditionalWorld]:
    """All of it, running."""
    with tempfile.TemporaryDirectory() as folder:
        weights = _one_layer(Path(folder) / "model")
        shared = ("--weights", str(weights), "--arithmetic", "fast", "--max-body-bytes", "1000000")
        paced = ("--paced", PROFILE, "--pace-factor", str(FACTOR), "--no-prefix-cache")
        # A prefill computes a prompt in one step: by the profile each step has a fixed part.
        whole = ("--chunk-tokens", str(LONGEST), "--max-batch-tokens", str(LONGEST))
        slots = ("--slots", str(PREFILL_SLOTS))
        prefill = EngineProcess("prefill", (*slots, *shared, *paced, *whole))
        decodes = [
            EngineProcess("decode", ("--slots", str(DECODE_SLOTS), *shared, *paced))
            for _ in range(DECODES)
        ]
        client, source, engines = Client(), PushSource(), [prefill, *decodes]
        options = GatewayOptions(credential=Credential(TOKEN), drain_seconds=1.0)
        gateway = GatewayServer(source, options, rng=random.Random(1))
        try:
            for each in engines:
                each.start()
            for each in engines:
                await until(partial(client.up, each), f"{each.name} listens", 60)
            await Group(client, [prefill], decodes).push()
            port = await gateway.start("127.0.0.1", 0)
            yield ConditionalWorld(f"http://127.0.0.1:{port}", client, engines, source)
        finally:
            await gateway.stop()
            for each in engines:
                each.kill()
            await client.close()


def _one_layer(folder: Path) -> Path:
    """The built-in model with one layer and a longer context."""
    shutil.copytree(Path(refengine.__file__).parent / "weights", folder)
    config = folder / "config.json"
    value = json.loads(config.read_text(encoding="utf-8"))
    value |= {"num_hidden_layers": 1, "max_position_embeddings": CONTEXT}
    config.write_text(json.dumps(value), encoding="utf-8")
    return folder
