"""What the kinds have in common, and what a CRD says about a kind beside its schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import ValidationError

from pdserve.api.base import ApiModel
from pdserve.api.errors import InvalidObjectError, problems_of
from pdserve.api.meta import ObjectMeta
from pdserve.terms.json import JsonMap

GROUP = "pdserve.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
_ROUNDS = 4
"""Leaving a part of a status out may show what else is wrong; then all of it goes."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; `wide` ones show only with `-o wide`."""

    name: str
    path: str
    type: Literal["string", "integer", "date"] = "string"
    description: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """JSON paths of the scale subresource."""

    spec_replicas: str
    status_replicas: str
    selector: str


@dataclass(frozen=True, slots=True)
class KindInfo:
    """How a kind is called and shown."""

    name: str
    plural: str
    short: str
    scope: Literal["Namespaced", "Cluster"]
    columns: tuple[Column, ...]
    scale: Scale | None = None

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


class CustomResource(ApiModel):
    """Base of the kinds. Subclasses add `spec` and `status`."""

    info: ClassVar[KindInfo]
    api_version: Literal["pdserve.io/v1alpha1"] = "pdserve.io/v1alpha1"
    metadata: ObjectMeta = ObjectMeta()

    @classmethod
    def stored(cls, value: JsonMap) -> Self:
        """Read an object as the API server holds it: its spec as `parse` does, and of its status
        what can be read.

        The status was written by the operator, perhaps by another version of it: a part that
        today's rules refuse is left out and written anew, and never keeps the object from being
        acted on.

        Raises:
            InvalidObjectError: today's rules refuse something outside of `status`.
        """
        for _ in range(_ROUNDS):
            try:
                return cls.model_validate(value)
            except ValidationError as error:
                wrong = [tuple(e["loc"]) for e in error.errors(include_url=False)]
                if any(loc[:1] != ("status",) for loc in wrong):
                    raise InvalidObjectError(cls.__name__, problems_of(error)) from None
                value = {**value, "status": _without(value["status"], wrong)}
        return cls.parse({k: v for k, v in value.items() if k != "status"})

    @property
    def name(self) -> str:
        """`metadata.name`."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """`metadata.namespace`; empty for cluster-scoped kinds."""
        return self.metadata.namespace


def _without(status: Any, wrong: Iterable[tuple[int | str, ...]]) -> Any:
    """A status without the fields, or items of its lists, at these paths (`status`, field, ...)."""
    if not isinstance(status, Mapping):
        return {}
    items: dict[str, set[int]] = {}
    kept = dict(status)
    for _, *path in wrong:
        if not path:
            return {}
        field, index = str(path[0]), path[1] if len(path) > 1 else None
        if isinstance(index, int) and isinstance(status.get(field), list | tuple):
            items.setdefault(field, set()).add(index)
        else:
            kept.pop(field, None)
    for field, indexes in items.items():
        if field in kept:
            kept[field] = [v for i, v in enumerate(kept[field]) if i not in indexes]
    return kept
