"""The load tools that `clients.py` runs unchanged: how each is installed, called and read.

None of them is a dependency of the project. Each gets a virtual environment of its own below
build/bench, or is taken from the folder that PDSERVE_BENCH_TOOLS names. What a tool calls the time
to the first token and between two tokens differs in words only; all report medians over requests.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import OUT

INSTALL_SECONDS = 900.0
RUN_SECONDS = 300.0


@dataclass(frozen=True)
class Traffic:
    """What every tool sends: streamed chats, so many at a time."""

    port: int
    model: str
    tokenizer: Path
    """Folder with `tokenizer.json` and `tokenizer_config.json`."""
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    requests: int


@dataclass(frozen=True)
class Medians:
    """What a tool found, in milliseconds."""

    ttft: float
    itl: float


@dataclass(frozen=True)
class Environment:
    """A virtual environment with packages of another project."""

    name: str
    requirements: tuple[str, ...]
    program: str
    """What these packages put below `bin`."""

    @property
    def home(self) -> Path:
        """Its folder."""
        shared = os.environ.get("PDSERVE_BENCH_TOOLS")
        return (Path(shared) if shared else OUT / "tools") / self.name

    def install(self) -> str:
        """Make it, once; the reason where that cannot be done, else empty."""
        if (self.home / "bin" / self.program).exists():
            return ""
        try:
            venv.create(self.home, with_pip=True)
            for requirement in self.requirements:
                command = [str(self.home / "bin" / "pip"), "install", "-q", *requirement.split()]
                subprocess.run(
                    command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS
                )
        except subprocess.CalledProcessError as error:
            return f"pip says: {error.stderr.strip()[-300:]}"
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return ""


@dataclass(frozen=True)
class Tool(Environment):
    """A load tool of another project."""

    version: str
    arguments: Callable[[Traffic, Path], Sequence[str]]
    """For this traffic, with the folder for what the tool writes."""
    read: Callable[[Path], Medians]
    """From that folder."""

    def run(self, traffic: Traffic, out: Path) -> Medians:
        """Send the traffic and read what the tool found; its output goes to `out`/log.

        Raises:
            AssertionError: the tool failed, or wrote nothing that can be read.
        """
        out.mkdir(parents=True, exist_ok=True)
        command = [str(self.home / "bin" / self.program), *self.arguments(traffic, out)]
        env = {**os.environ, "HOME": str(out)}
        with (out / "log").open("wb") as log:
            done = subprocess.run(
                command, check=False, stdout=log, stderr=log, cwd=out, env=env, timeout=RUN_SECONDS
            )
        assert done.returncode == 0, f"{self.name} exited with {done.returncode}: see {out}/log"
        try:
            return self.read(out)
        except (OSError, KeyError, IndexError, StopIteration, ValueError) as error:
            raise AssertionError(f"{self.name}: {error!r}; see {out}") from error


def _json(out: Path, pattern: str) -> Any:
    found = sorted(out.rglob(pattern))
    if not found:
        raise ValueError(f"no {pattern} was written")
    return json.loads(found[-1].read_text())


# --- aiperf --------------------------------------------------------------------------------------


def _aiperf(t: Traffic, out: Path) -> list[str]:
    return [
        "profile", "--model", t.model, "--url", f"http://127.0.0.1:{t.port}",
        "--endpoint-type", "chat", "--streaming", "--tokenizer", str(t.tokenizer),
        "--concurrency", str(t.concurrency), "--request-count", str(t.requests),
        "--synthetic-input-tokens-mean", str(t.prompt_tokens),
        "--synthetic-input-tokens-stddev", "0",
        "--output-tokens-mean", str(t.output_tokens), "--output-tokens-stddev", "0",
        "--use-server-token-count", "--extra-inputs", "ignore_eos:true",
        "--artifact-dir", str(out / "artifacts"), "--ui", "none",
    ]  # fmt: skip


def _read_aiperf(out: Path) -> Medians:
    found = _json(out, "profile_export_aiperf.json")
    return Medians(found["time_to_first_token"]["p50"], found["inter_token_latency"]["p50"])


# --- guidellm ------------------------------------------------------------------------------------


def _guidellm(t: Traffic, out: Path) -> list[str]:
    target = f"http://127.0.0.1:{t.port}"
    return [
        "run", "--backend", f"kind=openai_http,target={target},model={t.model}",
        "--profile", f"kind=concurrent,streams={t.concurrency}",
        "--constraint", f"kind=max_requests,count={t.requests}",
        "--tokenizer", f"kind=huggingface_auto,model={t.tokenizer}",
        "--data", f"kind=synthetic_text,prompt_tokens={t.prompt_tokens},"
        f"output_tokens={t.output_tokens}",
        "--output", f"kind=json,path={out / 'found.json'}", "--disable-progress",
    ]  # fmt: skip


def _read_guidellm(out: Path) -> Medians:
    (benchmark,) = _json(out, "found.json")["benchmarks"]
    metrics = benchmark["metrics"]
    return Medians(
        metrics["time_to_first_token_ms"]["successful"]["median"],
        metrics["inter_token_latency_ms"]["successful"]["median"],
    )


# --- evalscope -----------------------------------------------------------------------------------


def _evalscope(t: Traffic, out: Path) -> list[str]:
    tokens, prompt = str(t.output_tokens), str(t.prompt_tokens)
    return [
        "perf", "--url", f"http://127.0.0.1:{t.port}/v1/chat/completions", "--api", "openai",
        "--model", t.model, "--parallel", str(t.concurrency), "--number", str(t.requests),
        "--dataset", "random", "--tokenizer-path", str(t.tokenizer),
        "--min-prompt-length", prompt, "--max-prompt-length", prompt,
        "--min-tokens", tokens, "--max-tokens", tokens, "--stream",
        "--extra-args", '{"ignore_eos": true}', "--outputs-dir", str(out / "found"),
    ]  # fmt: skip


def _read_evalscope(out: Path) -> Medians:
    rows = _json(out, "benchmark_percentile.json")
    half = next(row for row in rows if row["Percentiles"] == "50%")
    return Medians(half["TTFT (ms)"], half["TPOT (ms)"])


TOOLS: Sequence[Tool] = (
    Tool("aiperf", ("aiperf==0.13.0",), "aiperf", "0.13.0", _aiperf, _read_aiperf),
    Tool("guidellm", ("guidellm==0.8.1",), "guidellm", "0.8.1", _guidellm, _read_guidellm),
    Tool("evalscope", ("evalscope[perf]==1.14.1",), "evalscope", "1.14.1", _evalscope,
         _read_evalscope),
)  # fmt: skip
"""In the order in which they run."""
