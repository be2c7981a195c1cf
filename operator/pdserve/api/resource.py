"""What the kinds have in common, and what a CRD says about a kind beside its schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pdserve.api.base import Model
from pdserve.api.meta import ObjectMeta

GROUP = "pdserve.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


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
class Kind:
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


class Resource(Model):
    """Base of the kinds. Subclasses add `spec` and `status`."""

    info: ClassVar[Kind]
    api_version: Literal["pdserve.io/v1alpha1"] = "pdserve.io/v1alpha1"
    metadata: ObjectMeta = ObjectMeta()

    @property
    def name(self) -> str:
        """`metadata.name`."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """`metadata.namespace`; empty for cluster-scoped kinds."""
        return self.metadata.namespace
