"""Who may open connections to a service's pods: field `networkPolicy` of a PDService."""

from __future__ import annotations

from typing import Annotated

from pdserve.api.base import ApiModel, Entries, Items, Rule, Text
from pdserve.api.strings import LABEL_KEY, LABEL_VALUE

Cidr = Annotated[
    str,
    Text(
        43,
        pattern=r"^([0-9]{1,3}(\.[0-9]{1,3}){3}/([0-9]|[12][0-9]|3[0-2])"
        r"|[0-9A-Fa-f:]{2,39}/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8]))$",
        says="a block of addresses such as 10.0.0.0/8 or fd00::/8",
    ),
]
Labels = Annotated[dict[str, str], Entries(16, key=LABEL_KEY, value=LABEL_VALUE, min=1)]


class NetworkPeer(ApiModel):
    """Pods or addresses that connections may come from."""

    rules = (
        Rule(
            "has(self.cidr) != (has(self.namespaceLabels) || has(self.podLabels))",
            "needs either cidr, or namespaceLabels, podLabels or both",
            lambda v: (v.cidr is None) != (v.namespace_labels is None and v.pod_labels is None),
        ),
    )

    namespace_labels: Labels | None = None
    """Labels that a namespace must all have; absent: the service's own namespace."""
    pod_labels: Labels | None = None
    """Labels that a pod must all have; absent: every pod of these namespaces."""
    cidr: Cidr | None = None
    """Addresses outside the cluster's pods."""


class NetworkIsolation(ApiModel):
    """NetworkPolicies that the operator keeps for this service. What they do not name cannot
    connect, where the cluster's network enforces them.
    """

    clients: Annotated[tuple[NetworkPeer, ...], Items(16)] = ()
    """Who may call the gateways; absent: any address."""
    metrics: Annotated[tuple[NetworkPeer, ...], Items(16)] = ()
    """Who may scrape gateways and instances; absent: pods of any namespace with the label
    app.kubernetes.io/name=prometheus."""
