"""How a model is computed: by which library, in which numbers, on which device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Backend = Literal["numpy", "torch"]
Mode = Literal["exact", "fast"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The choice; not every combination is possible (`problem`)."""

    mode: Mode = "exact"
    """`exact`: results do not depend on the batch; `fast`: their last bits may."""
    backend: Backend = "numpy"
    dtype: Dtype = "float32"
    """Of the weights in memory, and of KV on a device of its own."""
    device: str = "auto"
    """As torch names it (`cpu`, `cuda`, `cuda:1`); `auto`: the first GPU, else the CPU."""
    threads: int = 1
    """Of one matrix product on the CPU."""

    @property
    def numerics(self) -> str:
        """What instances tell each other where no bits are promised."""
        return "fast" if self.dtype == "float32" else f"fast-{self.dtype}"

    def problem(self) -> str | None:
        """Why this cannot be; None where it can."""
        if self.backend == "torch":
            return "exact needs backend numpy" if self.mode == "exact" else None
        if self.dtype != "float32":
            return f"{self.dtype} needs backend torch: numpy has no such products"
        if self.device not in ("auto", "cpu"):
            return f"device {self.device} needs backend torch"
        return "more threads than one need backend torch" if self.threads != 1 else None


EXACT = Arithmetic()
FAST = Arithmetic("fast")


class KvMirror(Protocol):
    """KV of a device that has memory of its own, beside the host's pool.

    What a step computes is on the device alone until it is fetched; what comes from elsewhere is in
    the pool until the next step that reads it.
    """

    def received(self, blocks: list[int]) -> None:
        """Others wrote these blocks of the pool; no step that reads them runs."""

    def fetch(self, blocks: list[int]) -> None:
        """Bring the pool up to date in these blocks; called between steps, on their thread."""
