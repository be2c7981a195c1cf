"""The engine's metric families: names from `wire.metrics`, kept by the event loop.

`pdserve_engine_*` series get their labels from pod labels at scrape time. Series under vLLM's names
carry `model_name` as vLLM does. They have a registry and a path of their own, because promlint
reserves a colon in a name for recording rules.
"""

from __future__ import annotations

from pdserve import __version__
from pdserve.engines.reference import metrics as vllm
from pdserve.exposition import CounterSeries, GaugeSeries, HistogramSeries, Registry
from pdserve.exposition.process_metrics import tell_process
from pdserve.wire import metrics

_MODEL = ("model_name",)


class EngineMetrics:
    """All series of one engine process."""

    def __init__(self, model: str, paced: bool) -> None:
        self.registry, self.vllm = Registry(), Registry()
        tell_process(self.registry, "engine", __version__)
        self._model = model
        counter, gauge = self._counter, self.registry.gauge
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
        self._pulls = self.registry.counter(
            metrics.KV_PULLS, "KV pulls of a decode, by address", ["path", "reason"]
        )
        self._corrupt = self.registry.counter(
            metrics.KV_CORRUPT_PULLS, "KV pulls that arrived corrupt, by the prefill", ["peer"]
        )
        self._device_addresses = gauge(
            metrics.KV_DEVICE_ADDRESSES, "Addresses of own devices in the peer table", ["state"]
        )
        self.decode_steps = counter(metrics.DECODE_STEPS, "Steps without prompt tokens")
        self.decode_seconds = counter(metrics.DECODE_STEP_SECONDS, "Time of these steps")
        self.decode_requests = counter(metrics.DECODE_STEP_REQUESTS, "Requests in these steps")
        self.decode_context = counter(
            metrics.DECODE_STEP_CONTEXT, "Context tokens of the requests in these steps"
        )
        self._slots = gauge(metrics.SLOTS, "Slots by state", ["state"])
        self._rejections = self.registry.counter(
            metrics.REJECTIONS, "Requests refused for lack of room", ["reason"]
        )
        if paced:
            self.paced_valid = gauge(
                metrics.PACED_VALID, "1 while paced figures are valid"
            ).labels()
            self.paced_valid.set(1)
            self.paced_late = counter(metrics.PACED_LATE, "Steps delivered after their time")
        self._running = self._model_gauge(vllm.VLLM_RUNNING, "Requests accepted and not finished")
        self._model_gauge(vllm.VLLM_WAITING, "Always 0: requests are rejected instead")
        self._kv_usage = self._model_gauge(vllm.VLLM_KV_USAGE, "Share of KV blocks in use, 0 to 1")
        self._prompt = self._model_counter(vllm.VLLM_PROMPT_TOKENS, "Prompt tokens processed")
        self._generated = self._model_counter(vllm.VLLM_GENERATION_TOKENS, "Tokens generated")
        self._success = self.vllm.counter(
            vllm.VLLM_SUCCESS, "Requests completed", ["finished_reason", "model_name"]
        )
        self._rejected = self.vllm.counter(
            vllm.VLLM_REJECTIONS, "Requests refused before queueing", ["reason", "model_name"]
        )
        self._ttft = self._model_histogram(vllm.VLLM_TTFT, "Accept to first token")
        self._itl = self._model_histogram(vllm.VLLM_ITL, "Between two tokens")
        self._e2e = self._model_histogram(vllm.VLLM_E2E, "Accept to last token")

    def _counter(self, name: str, text: str) -> CounterSeries:
        return self.registry.counter(name, text).labels()

    def _model_counter(self, name: str, text: str) -> CounterSeries:
        return self.vllm.counter(name, text, _MODEL).labels(self._model)

    def _model_gauge(self, name: str, text: str) -> GaugeSeries:
        return self.vllm.gauge(name, text, _MODEL).labels(self._model)

    def _model_histogram(self, name: str, text: str) -> HistogramSeries:
        return self.vllm.histogram(name, text, _MODEL).labels(self._model)

    def rejected(self, reason: str) -> None:
        """Count one request that was refused."""
        self._rejections.labels(reason).inc()
        self._rejected.labels(reason, self._model).inc()

    def kv_pulled(self, path: str, reason: str) -> None:
        """A decode pulled KV from a peer's `device` or `pod`; `reason`: why not from a device."""
        self._pulls.labels(path, reason).inc()

    def kv_corrupt(self, peer: str) -> None:
        """KV that was pulled from `peer` did not match its checksum, and was not used."""
        self._corrupt.labels(peer).inc()

    def device_addresses(self, listening: int, missing: int) -> None:
        """KV is listened for at so many addresses of devices, and cannot be at so many."""
        self._device_addresses.labels("listening").set(listening)
        self._device_addresses.labels("missing").set(missing)

    def occupancy(self, states: dict[str, int], running: int, kv_usage: float) -> None:
        """Show slots by state, running requests, and KV use (share of 0 to 1) as they are now."""
        for state, count in states.items():
            self._slots.labels(state).set(count)
        self._running.set(running)
        self._kv_usage.set(kv_usage)

    def first_token(self, prompt_tokens: int, seconds: float) -> None:
        """Count a request that got its first token here, `seconds` after it was accepted."""
        self._prompt.inc(prompt_tokens)
        self._generated.inc()
        self._ttft.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """Count another token of a request, `seconds` after the one before."""
        self._generated.inc()
        self._itl.observe(seconds)

    def finished(self, reason: str, seconds: float) -> None:
        """Count a request that completed here, `seconds` after it was accepted."""
        self._success.labels(reason, self._model).inc()
        self._e2e.observe(seconds)
