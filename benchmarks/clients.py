"""Load tools of other projects against a P/D service: they run unchanged, and find the same times.

Run by `make bench-clients`; progress on standard error. A gateway process and five engine processes
serve the built-in model at the pace of a profile (the answers are computed, their times are slept
to: `paced`), so that what is compared is how the tools and our streams understand each other, not
this machine. Each tool sends the same kind of traffic, one after the other, and its medians are
compared with those that the openai SDK measures. The first run installs the tools, gigabytes, below
build/bench/tools; PDSERVE_BENCH_TOOLS names another folder.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import OUT, Progress, Row, concluded
from benchmarks.parts.client_tools import TOOLS, Medians, Tool, Traffic
from benchmarks.parts.hostile_rig import MODEL, over_engines
from openai import AsyncOpenAI

import pdserve.refengine
from pdserve.refengine.model.chat_template import default_template

CONCURRENCY = 4
AGREE = 1.05
"""Of two medians the larger over the smaller."""
SLOWEST_START = 300.0
"""Milliseconds to the first token that the profile gives at least."""
PROFILE = {
    "name": "bench-clients",
    "source": "No device: long enough that the tools' own times do not count.",
    "prefill": {"a": 0.35, "b": 0.0001, "c": 0.0},
    "decode": {"d": 0.040, "e": 0.0, "f": 0.0},
    "kv": {"bytesPerToken": 2048, "linkBytesPerSecond": 500e6},
}
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048}


def tokenizer_folder(folder: Path) -> Path:
    """The built-in model's tokenizer as a folder that Hugging Face's libraries read."""
    weights = Path(pdserve.refengine.__file__).parent / "weights"
    shutil.copy(weights / "tokenizer.json", folder)
    shutil.copy(weights / "config.json", folder)
    added = json.loads((folder / "tokenizer.json").read_text()).get("added_tokens", ())
    template = default_template({token["content"]: token["id"] for token in added})
    settings = {**TOKENIZER, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


async def by_sdk(traffic: Traffic) -> Medians:
    """What the openai SDK measures, chunk by chunk.

    Raises:
        AssertionError: an answer had fewer chunks than two.
    """
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{traffic.port}/v1", api_key="none")
    prompt = " ".join(["word"] * traffic.prompt_tokens)
    firsts, gaps = [], []

    async def one() -> None:
        began = time.perf_counter()
        stream = await client.chat.completions.create(
            model=traffic.model, messages=[{"role": "user", "content": prompt}], stream=True,
            max_tokens=traffic.output_tokens, extra_body={"ignore_eos": True},
            stream_options={"include_usage": True},
        )  # fmt: skip
        times, tokens = [], 0
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content is not None:
                times.append(time.perf_counter())
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
        assert len(times) > 1 and tokens > 1, f"{len(times)} chunks with {tokens} tokens"
        firsts.append(times[0] - began)
        gaps.append((times[-1] - times[0]) / (tokens - 1))

    async def some(count: int) -> None:
        for _ in range(count):
            await one()

    share = traffic.requests // traffic.concurrency
    await asyncio.gather(*(some(share) for _ in range(traffic.concurrency)))
    await client.close()
    return Medians(median(firsts) * 1000, median(gaps) * 1000)


def compared(tool: str, what: str, found: float, sdk: float, n: int) -> Row:
    """One median beside the SDK's: the larger over the smaller."""
    return Row(
        f"{tool}: median {what}, the larger of both", max(found, sdk), "ms",
        f"the smaller ({tool} {found:.1f}, openai SDK {sdk:.1f})", min(found, sdk), AGREE, "lower",
        n=n,
    )  # fmt: skip


async def measure(tools: list[Tool], requests: int, say: Progress) -> list[Row]:
    """Rows of these tools.

    Raises:
        AssertionError: one failed, or the service.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="pdserve-bench-") as place:
        folder = Path(place)
        profile = folder / "profile.json"
        profile.write_text(json.dumps(PROFILE))
        (folder / "tokenizer").mkdir()
        tokenizer = tokenizer_folder(folder / "tokenizer")
        paced = ("--paced", str(profile))
        # A prefill for each client: who comes first must not change the time to the first token.
        slots = (1, 2 * CONCURRENCY)
        async with over_engines(
            CONCURRENCY, 1, slots, prefill_args=paced, decode_args=paced
        ) as service:
            traffic = Traffic(service.port, MODEL, tokenizer, 100, 48, CONCURRENCY, requests)
            sdk = await by_sdk(traffic)
            say(f"openai SDK: first token {sdk.ttft:.1f} ms, then {sdk.itl:.2f} ms a token")
            rows.append(
                Row("median time to the first token, openai SDK", sdk.ttft, "ms",
                    "the least that counts", SLOWEST_START, 1.0, "higher", n=requests)
            )  # fmt: skip
            for tool in tools:
                out = OUT / "clients" / tool.name
                shutil.rmtree(out, ignore_errors=True)
                found = await asyncio.to_thread(tool.run, traffic, out)
                say(f"{tool.name} {tool.version}: {found.ttft:.1f} ms, {found.itl:.2f} ms a token")
                named = f"{tool.name} {tool.version}"
                rows += [
                    compared(named, "time to the first token", found.ttft, sdk.ttft, requests),
                    compared(named, "time between tokens", found.itl, sdk.itl, requests),
                ]
    return rows


def main() -> int:
    """0: all agree; 1: one does not, or failed; 2: none could be installed; 130: interrupted."""
    parser = argparse.ArgumentParser(prog="make bench-clients", description=__doc__)
    parser.add_argument("--only", action="append", choices=[t.name for t in TOOLS])
    parser.add_argument("--requests", type=int, default=40, help="per tool (default: 40)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say, ready = Progress(), []
    for tool in TOOLS:
        if chosen.only and tool.name not in chosen.only:
            continue
        say(f"{tool.name} {tool.version}: looking for it, or installing it")
        reason = tool.install()
        if reason:
            say(f"left out: {tool.name} cannot be installed: {reason}")
        else:
            ready.append(tool)
    if not ready:
        return 2
    return concluded("clients", measure(ready, chosen.requests, say))


if __name__ == "__main__":
    sys.exit(main())
