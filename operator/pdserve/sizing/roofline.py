"""A profile estimated from a model's shape and a device's data sheet.

Each operation takes the longer of its arithmetic at the device's peak and its bytes at the memory's
bandwidth, as in LLM-Viewer (Yuan et al., "LLM Inference Unveiled: Survey and Roofline Model
Insights", arXiv 2402.16363), divided by the share of that peak which engines reach. Left out:
communication between the devices of an instance, kernel launches, sampling. Times of a grid of
batches and lengths are then fitted by the profile's own form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pdserve.ratio.profile import DecodeProfile, PerformanceProfile, PrefillProfile
from pdserve.sizing.fit import Row, fit_times

COMPUTE_SHARE = 0.4
"""Share of peak arithmetic that engines reach in prefill: 0.27 to 0.37 in `ratio.presets`
(Splitwise, 2023), 0.4 to 0.6 in later engines."""
MEMORY_SHARE = 0.5
"""Share of peak bandwidth in decode: 0.17 to 0.20 in `ratio.presets`, 0.5 to 0.8 in later
engines."""
BATCHES = (1, 4, 16, 64)
LENGTHS = (256.0, 1024.0, 4096.0, 16384.0)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device as its data sheet has it."""

    flops: float
    """Dense FLOP/s in 16 bits."""
    bandwidth: float
    """Bytes per second of its memory."""
    memory: float
    """Bytes."""


ACCELERATORS: Mapping[str, Accelerator] = {
    "a100-80g": Accelerator(312e12, 2.04e12, 80e9),
    "h100": Accelerator(989e12, 3.35e12, 80e9),
    "h200": Accelerator(989e12, 4.8e12, 141e9),
    "b200": Accelerator(2250e12, 8.0e12, 180e9),
    "l40s": Accelerator(362e12, 0.864e12, 48e9),
    "mi300x": Accelerator(1307e12, 5.3e12, 192e9),
    "ascend-910b": Accelerator(320e12, 1.6e12, 64e9),
}
"""Data sheets of the makers; that of the 910B as published by third parties."""


class RooflineError(ValueError):
    """A model's config or a device cannot be used; the message names the field."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a transformer's size is made of."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    experts: int = 1
    """Feed-forward networks of a layer; 1: dense."""
    experts_per_token: int = 1

    @property
    def attention_weights(self) -> float:
        """Parameters of all attention projections."""
        width = self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return float(self.layers * self.hidden * width)

    @property
    def expert_weights(self) -> float:
        """Parameters of one expert in every layer."""
        return 3.0 * self.layers * self.hidden * self.intermediate

    @property
    def weights(self) -> float:
        """Parameters in all."""
        embeddings = 2.0 * self.vocabulary * self.hidden
        return self.attention_weights + self.experts * self.expert_weights + embeddings

    @property
    def kv_bytes(self) -> float:
        """Bytes of KV for one token, in 16 bits."""
        return 4.0 * self.layers * self.kv_heads * self.head_size

    def active_weights(self) -> float:
        """Parameters that one token is multiplied by, without the output layer."""
        return self.attention_weights + self.experts_per_token * self.expert_weights

    def weights_read(self, tokens: float) -> float:
        """Parameters that a pass over so many tokens reads; experts are chosen at random."""
        missed = (1.0 - self.experts_per_token / self.experts) ** tokens
        read = self.experts * (1.0 - missed) if self.experts > 1 else 1.0
        return self.attention_weights + read * self.expert_weights + self.vocabulary * self.hidden


def model_shape(config: Mapping[str, object]) -> ModelShape:
    """The shape that a Hugging Face `config.json` describes.

    Raises:
        RooflineError: a field is missing or no positive integer, or attention is compressed (MLA).
    """
    if config.get("kv_lora_rank"):
        raise RooflineError("kv_lora_rank: compressed KV (MLA) is not in this estimate; "
                            "give a measured profile (--profile FILE)")  # fmt: skip
    heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    experts = _count(config, "num_local_experts", "num_experts", "n_routed_experts", default=1)
    return ModelShape(
        layers=_count(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_count(config, "num_key_value_heads", default=heads),
        head_size=_count(config, "head_dim", default=max(hidden // heads, 1)),
        intermediate=(
            _count(config, "moe_intermediate_size", "intermediate_size")
            if experts > 1
            else _count(config, "intermediate_size")
        ),
        vocabulary=_count(config, "vocab_size"),
        experts=experts,
        experts_per_token=min(
            _count(config, "num_experts_per_tok", default=1) if experts > 1 else 1, experts
        ),
    )


def _count(config: Mapping[str, object], *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 10**8:
            raise RooflineError(f"{name}: {value!r:.40}: want an integer of 1 to 100,000,000")
        return value
    if default is None:
        raise RooflineError(f"{names[0]}: missing; want the config.json of a transformer")
    return default


def roofline_profile(
    shape: ModelShape, device: str, devices: int, prefill_slots: int, decode_slots: int,
    compute_share: float = COMPUTE_SHARE, memory_share: float = MEMORY_SHARE,
) -> PerformanceProfile:  # fmt: skip
    """An estimated profile of an instance of so many devices, weights and KV in 16 bits.

    Raises:
        RooflineError: the device is not known, or the weights do not fit into its memory.
    """
    if device not in ACCELERATORS:
        raise RooflineError(f"device {device!r}: want one of {', '.join(sorted(ACCELERATORS))}")
    sheet = ACCELERATORS[device]
    need, have = 2.0 * shape.weights, devices * sheet.memory * 0.9
    if need > have:
        raise RooflineError(
            f"weights of {need / 1e9:.0f} GB do not fit into {devices} x {device} "
            f"({have / 1e9:.0f} GB usable): more devices per instance (--instance-devices)"
        )
    flops = devices * sheet.flops * compute_share
    bandwidth = devices * sheet.bandwidth * memory_share
    prefill: list[Row] = []
    decode: list[Row] = []
    for batch in BATCHES:
        for length in LENGTHS:
            seconds = _pass(shape, batch * length, batch * length * length / 2, batch * length,
                            flops, bandwidth)  # fmt: skip
            prefill.append(((1.0, batch * length, batch * length * length), seconds))
            seconds = _pass(shape, batch, batch * length, batch * length, flops, bandwidth)
            decode.append(((1.0, batch, batch * length), seconds))
    kv_room = (have - need) / shape.kv_bytes
    return PerformanceProfile(
        PrefillProfile(*fit_times(prefill)), DecodeProfile(*fit_times(decode)), prefill_slots,
        max(1, min(decode_slots, int(kv_room / 2048))),
        f"roofline:{devices}x{device} (an estimate)",
    )  # fmt: skip


def _pass(
    shape: ModelShape, tokens: float, pairs: float, kv_tokens: float, flops: float, bandwidth: float
) -> float:
    """Seconds of one forward pass.

    `pairs`: (query, key) pairs that attention computes; `kv_tokens`: KV read or written.
    """
    linear = max(
        2.0 * tokens * shape.active_weights() / flops, 2.0 * shape.weights_read(tokens) / bandwidth
    )
    attention = max(
        4.0 * pairs * shape.heads * shape.head_size * shape.layers / flops,
        kv_tokens * shape.kv_bytes / bandwidth,
    )
    return linear + attention
