"""What every object carries: metadata, conditions, and times as Kubernetes writes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Protocol

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pdserve.api.base import MAX_INT64, Int, Observed, Text
from pdserve.api.strings import Time
from pdserve.terms.json import JsonObject
from pdserve.terms.times import rfc3339

Generation = Annotated[int, Int(0, MAX_INT64, bits=64)]


class ObjectMeta(Observed):
    """The part of Kubernetes' ObjectMeta that pdserve reads; the rest is ignored."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    owner_references: tuple[JsonObject, ...] = ()

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> JsonObject:
        # An empty uid or resourceVersion is a precondition to the API server, not an absent one.
        return {k: v for k, v in handler(self).items() if v}


class Condition(Observed):
    """One aspect of an object's state (Kubernetes API conventions)."""

    type: Annotated[str, Text(64, pattern=r"^[A-Za-z][A-Za-z0-9]*$", says="one CamelCase word")]
    """Which aspect."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Text(128, pattern=r"^[A-Za-z][A-Za-z0-9]*$", says="one CamelCase word")]
    """Why, as one CamelCase word."""
    message: Annotated[str, Text(4096, min=0, clip=True)] = ""
    """Why, for people."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: Generation = 0
    """The `metadata.generation` this was found for."""


class ConditionLike(Protocol):
    """A condition without times, as planners make them."""

    @property
    def type(self) -> str:
        """Which aspect."""
        ...

    @property
    def status(self) -> Literal["True", "False", "Unknown"]:
        """Whether it holds."""
        ...

    @property
    def reason(self) -> str:
        """Why, as one CamelCase word."""
        ...

    @property
    def message(self) -> str:
        """Why, for people."""
        ...


def merge_conditions(
    current: Iterable[Condition],
    wanted: Iterable[ConditionLike],
    observed_generation: int,
    now: float,
) -> tuple[Condition, ...]:
    """`wanted` with times: the old transition time is kept while a status does not change.

    Conditions that `wanted` does not name are kept. Sorted by type. `now`: seconds since the
    epoch.
    """
    merged = {c.type: c for c in current}
    for w in wanted:
        old = merged.get(w.type)
        if old is not None and _is_same(old, w, observed_generation):
            continue
        changed = old is None or old.status != w.status
        merged[w.type] = Condition(
            type=w.type,
            status=w.status,
            reason=w.reason,
            message=w.message,
            last_transition_time=rfc3339(now)
            if old is None or changed
            else old.last_transition_time,
            observed_generation=observed_generation,
        )
    return tuple(merged[t] for t in sorted(merged))


def _is_same(old: Condition, wanted: ConditionLike, observed_generation: int) -> bool:
    return (old.status, old.reason, old.message, old.observed_generation) == (
        wanted.status, wanted.reason, wanted.message, observed_generation,
    )  # fmt: skip
