"""The engine's metric families: names from `wire.metrics`, kept by the event loop.

vLLM's names carry `model_name` as vLLM does; `pdserve:*` series get their other labels from pod
labels at scrape time.
"""

from __future__ import annotations

from pdserve.wire import exposition, metrics


class EngineMetrics:
    """All series of one engine process."""

    def __init__(self, model: str, paced: bool) -> None:
        self.registry = exposition.Registry()
        self._model = model
        counter, gauge = self.registry.counter, self.registry.gauge
        self.prefill_batches = counter(metrics.PREFILL_BATCHES, "Steps that computed prompt tokens")
        self.prefill_requests = counter(metrics.PREFILL_REQUESTS, "Prompts completed")
        self.prefill_seconds = counter(
            metrics.PREFILL_COMPUTE_SECONDS, "Time of steps with prompt tokens"
        )
        self.prefill_tokens = counter(metrics.PREFILL_TOKENS, "Uncached prompt tokens computed")
        self.prefill_squared = counter(
            metrics.PREFILL_TOKENS_SQUARED, "Squares of uncached prompt lengths"
        )
        self.kv_wait = counter(
            metrics.KV_WAIT_DECODE_SECONDS, "Time finished prefills waited for a decode to pull"
        )
        self.transfer_seconds = counter(metrics.KV_TRANSFER_SECONDS, "Time of KV transfers")
        self.transfers = counter(metrics.KV_TRANSFERS, "KV transfers")
        self.transfer_bytes = counter(metrics.KV_TRANSFER_BYTES, "KV bytes transferred")
        self.decode_steps = counter(metrics.DECODE_STEPS, "Steps without prompt tokens")
        self.decode_seconds = counter(metrics.DECODE_STEP_SECONDS, "Time of these steps")
        self.decode_requests = counter(metrics.DECODE_STEP_REQUESTS, "Requests in these steps")
        self.decode_context = counter(
            metrics.DECODE_STEP_CONTEXT, "Context tokens of the requests in these steps"
        )
        self.slots = gauge(metrics.SLOTS, "Slots by state", ["state"])
        self.rejections = counter(
            metrics.REJECTIONS, "Requests refused for lack of room", ["reason"]
        )
        if paced:
            self.paced_valid = gauge(metrics.PACED_VALID, "1 while paced figures may be believed")
            self.paced_valid.set(1)
            self.paced_late = counter(metrics.PACED_LATE, "Steps delivered after their time")
        label = ["model_name"]
        self._running = gauge(metrics.VLLM_RUNNING, "Requests accepted and not finished", label)
        self._waiting = gauge(
            metrics.VLLM_WAITING, "Always 0: requests are rejected instead", label
        )
        self._kv_usage = gauge(metrics.VLLM_KV_USAGE, "Share of KV blocks in use, 0 to 1", label)
        self._prompt = counter(metrics.VLLM_PROMPT_TOKENS, "Prompt tokens processed", label)
        self._generated = counter(metrics.VLLM_GENERATION_TOKENS, "Tokens generated", label)
        self._success = counter(
            metrics.VLLM_SUCCESS, "Requests completed", ["finished_reason", "model_name"]
        )
        self._rejected = counter(
            metrics.VLLM_REJECTIONS, "Requests refused before queueing", ["reason", "model_name"]
        )
        histogram = self.registry.histogram
        self._ttft = histogram(metrics.VLLM_TTFT, "Accept to first token", label)
        self._itl = histogram(metrics.VLLM_ITL, "Between two tokens", label)
        self._e2e = histogram(metrics.VLLM_E2E, "Accept to last token", label)
        self._waiting.set(0, model)

    def rejected(self, reason: str) -> None:
        """One request was refused."""
        self.rejections.inc(1, reason)
        self._rejected.inc(1, reason, self._model)

    def occupancy(self, states: dict[str, int], running: int, kv_usage: float) -> None:
        """Slots, running requests and KV use as they are now."""
        for state, count in states.items():
            self.slots.set(count, state)
        self._running.set(running, self._model)
        self._kv_usage.set(kv_usage, self._model)

    def first_token(self, prompt_tokens: int, seconds: float) -> None:
        """A request got its first token from this instance."""
        self._prompt.inc(prompt_tokens, self._model)
        self._generated.inc(1, self._model)
        self._ttft.observe(seconds, self._model)

    def next_token(self, seconds: float) -> None:
        """A request got another token."""
        self._generated.inc(1, self._model)
        self._itl.observe(seconds, self._model)

    def finished(self, reason: str, seconds: float) -> None:
        """A request completed here."""
        self._success.inc(1, reason, self._model)
        self._e2e.observe(seconds, self._model)
