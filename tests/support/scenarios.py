"""What is done to a cluster with pdserve in it, and what must be seen then.

Functions here know Kubernetes and pdserve's objects, never what the nodes are made of: they take
a `Cluster`: process nodes (`process_cluster`), or real kubelets (`real_cluster`). Nothing sleeps
for a fixed time; everything polls with a deadline."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pdserve.wire import names

Json = dict[str, Any]
API = "/apis/pdserve.io/v1alpha1"
POLL_SECONDS = 0.1
READY_SECONDS = 60.0
"""Generous, because the machine may be slow; what was measured is printed and recorded."""
_patience = 1.0


def set_patience(factor: float) -> None:
    """Stretch every deadline of `until`: to be said once, for the cluster under test."""
    global _patience
    _patience = factor


class Cluster(Protocol):
    """A cluster under test, and ways to break it."""

    nodes: str
    """What its nodes are: `process`, `kind`, or `kubeconfig` (unknown, and not to be broken)."""
    patience: float
    """Factor on every deadline."""
    kubeconfig: Path

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> str:
        """Output of kubectl; without `check` its errors are part of the output."""

    def apply(self, *documents: str | Mapping[str, Any], namespace: str = "default") -> None:
        """`kubectl apply` of YAML texts or objects."""

    def get(self, path: str) -> Json | None:
        """GET of an API path; None when there is no such object."""

    def text(self, path: str) -> str:
        """GET of an API path that answers text."""

    def url(self, pod: Json, port: int = names.PORT_HTTP) -> str:
        """Base URL at which this machine reaches a pod."""

    def kill(self, namespace: str, pod: str) -> None:
        """SIGKILL the main process of the pod's container."""

    def frozen(self, namespace: str, pod: str) -> AbstractContextManager[None]:
        """The pod's processes stand still: connections stay open, silent."""

    def api_frozen(self) -> AbstractContextManager[None]:
        """The API server stands still."""

    def cut(self, node: str) -> None:
        """No heartbeat of this node reaches the API server; its pods run on."""

    def restore(self, node: str) -> None:
        """Undo `cut`."""

    def stop(self, node: str) -> None:
        """The node goes down, its containers with it."""

    def start(self, node: str) -> None:
        """Undo `stop`: its pods' containers start again, at addresses of their own choice."""

    def device(self, node: str, device: int, *, healthy: bool) -> None:
        """Mark a device unhealthy, or healthy again."""


class Identity(NamedTuple):
    """What changes when a pod is replaced or its container restarted."""

    uid: str
    restarts: int


def until(
    what: str,
    check: Callable[[], Any],
    seconds: float = READY_SECONDS,
    instead: Callable[[], object] | None = None,
) -> Any:
    """Poll until `check` answers something true, and give that back.

    Fails after `seconds`, which count more where nodes are slower (`set_patience`), and then says
    what `instead` finds.
    """
    seconds *= _patience
    deadline = time.monotonic() + seconds
    while not (answer := check()):
        if time.monotonic() >= deadline:
            found = "" if instead is None else f"; instead:\n{instead()}"
            raise AssertionError(f"not within {seconds:g} s: {what}{found}")
        time.sleep(POLL_SECONDS)
    return answer


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """`with stopwatch() as seconds: ...; seconds()`."""
    began = time.monotonic()
    yield lambda: time.monotonic() - began


def pods(cluster: Cluster, namespace: str, **labels: str) -> list[Json]:
    """Instance pods by name; `role="decode", scenario="chat"` select by pdserve's labels."""
    selector = ",".join(
        [f"{names.LABEL_COMPONENT}=instance"]
        + [f"{names.GROUP}/{key.replace('_', '-')}={value}" for key, value in labels.items()]
    )
    return pods_by_labels(cluster, namespace, selector)


def gateways(cluster: Cluster, namespace: str, service: str, *, every: bool = False) -> list[Json]:
    """Ready gateway pods of a service that stay; or all there are."""
    selector = f"{names.LABEL_COMPONENT}=gateway,{names.LABEL_SERVICE}={service}"
    found = pods_by_labels(cluster, namespace, selector)
    return found if every else [p for p in found if is_ready(p) and not leaving(p)]


def wait_gateways(cluster: Cluster, namespace: str, service: str, count: int) -> list[Json]:
    """`gateways`, once there are `count` of them."""

    def ready() -> list[Json] | None:
        found = gateways(cluster, namespace, service)
        return found if len(found) == count else None

    return list(until(f"{count} ready gateways of {namespace}/{service}", ready))


def pods_by_labels(cluster: Cluster, namespace: str, selector: str) -> list[Json]:
    """Pods that a label selector takes, by name."""
    found = cluster.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")
    assert found is not None
    return sorted(found["items"], key=lambda pod: str(pod["metadata"]["name"]))


def name_of(obj: Json) -> str:
    """`metadata.name`."""
    return str(obj["metadata"]["name"])


def leaving(pod: Json) -> bool:
    """Deleted, but not gone yet."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def condition(obj: Json | None, kind: str) -> Json:
    """A condition of an object; `{}` where there is none."""
    conditions = ((obj or {}).get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind), {})


def is_ready(obj: Json | None) -> bool:
    """True when condition Ready is True, for the spec that is there now."""
    found = condition(obj, "Ready")
    assert obj is not None or not found
    current = found.get("observedGeneration") in (
        None,
        (obj or {}).get("metadata", {}).get("generation"),
    )
    return found.get("status") == "True" and current


def wait_account(kubectl: Callable[..., str], namespace: str) -> None:
    """Wait until pods may be created in a new namespace: admission wants their service account."""
    ask = ("get", "serviceaccount", "default", "-n", namespace, "--ignore-not-found", "-o", "name")
    until(f"a service account in {namespace}", lambda: kubectl(*ask))


def service(cluster: Cluster, namespace: str, name: str) -> Json | None:
    """A PDService."""
    return cluster.get(f"{API}/namespaces/{namespace}/pdservices/{name}")


def group(cluster: Cluster, namespace: str, name: str) -> Json | None:
    """A ScenarioGroup."""
    return cluster.get(f"{API}/namespaces/{namespace}/scenariogroups/{name}")


def counts(cluster: Cluster, namespace: str, name: str) -> tuple[int, int, int]:
    """Groups, prefill, decode that a ScenarioGroup asks for."""
    spec = (group(cluster, namespace, name) or {}).get("spec", {})
    return tuple(  # type: ignore[return-value]  # three of them
        int(part.get("replicas", -1))
        for part in (spec, spec.get("prefill", {}), spec.get("decode", {}))
    )


def decisions(cluster: Cluster, namespace: str, name: str) -> list[Json]:
    """The recorded decisions of a ScenarioGroup, oldest first."""
    status = (group(cluster, namespace, name) or {}).get("status") or {}
    return list(status.get("decisions") or ())


def table(cluster: Cluster, namespace: str, name: str, key: str) -> Json:
    """The JSON document in a ConfigMap; `{}` when there is no such ConfigMap."""
    found = cluster.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}")
    return dict(json.loads(found["data"][key])) if found else {}


def routed(cluster: Cluster, namespace: str, service_name: str) -> set[str]:
    """Names of the instances that gateways may use."""
    routes = table(cluster, namespace, names.routes_configmap_name(service_name), names.KEY_ROUTES)
    return {
        instance["id"]
        for scenario in routes.get("scenarios", ())
        for routed_group in scenario["groups"]
        for instance in routed_group["instances"]
    }


def events(cluster: Cluster, namespace: str, reason: str) -> list[Json]:
    """Events of one reason, by whichever API they were written."""
    found = cluster.get(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
    return [e for e in (found or {}).get("items", ()) if e.get("reason") == reason]


def wait_service(
    cluster: Cluster, namespace: str, name: str, seconds: float = READY_SECONDS
) -> float:
    """Wait until a PDService is Ready and nothing of it is leaving; seconds it took."""
    with stopwatch() as took:
        until(
            f"PDService {namespace}/{name} Ready",
            lambda: is_ready(service(cluster, namespace, name)),
            seconds,
            instead=lambda: explain(cluster, namespace),
        )
        return took()


def wait_settled(
    cluster: Cluster, namespace: str, name: str, seconds: float = READY_SECONDS
) -> float:
    """Wait until a ScenarioGroup is Ready with nothing going on; seconds it took."""

    def settled() -> bool:
        obj = group(cluster, namespace, name)
        progress = condition(obj, "Progressing")
        return is_ready(obj) and progress.get("reason") == "Complete"

    with stopwatch() as took:
        until(
            f"ScenarioGroup {namespace}/{name} settled",
            settled,
            seconds,
            instead=lambda: explain(cluster, namespace),
        )
        return took()


def explain(cluster: Cluster, namespace: str) -> str:
    """What there is, for a failed test's message."""
    said = [cluster.kubectl("get", "pds,psg,pods,rdom", "-n", namespace, "-o", "wide", check=False)]
    for kind in ("pds", "psg"):
        path = (
            "{range .items[*]}{.metadata.name}{': '}{range .status.conditions[*]}{.type}={.status} "
            "{.reason} {.message}{'; '}{end}{'\\n'}{end}"
        )
        said.append(
            cluster.kubectl("get", kind, "-n", namespace, "-o", f"jsonpath={path}", check=False)
        )
    return "\n".join(said)


def identities(cluster: Cluster, namespace: str) -> dict[str, Identity]:
    """Every pod of a namespace: instances and gateways."""
    found = cluster.get(f"/api/v1/namespaces/{namespace}/pods")
    assert found is not None
    return {
        name_of(pod): Identity(
            pod["metadata"]["uid"],
            sum(c["restartCount"] for c in pod.get("status", {}).get("containerStatuses", ())),
        )
        for pod in found["items"]
        if not leaving(pod)
    }


class Difference(NamedTuple):
    """How two `identities` differ."""

    gone: set[str]
    new: set[str]
    restarted: set[str]


def difference(before: Mapping[str, Identity], after: Mapping[str, Identity]) -> Difference:
    """Names of pods that went, came, or whose container restarted."""
    common = before.keys() & after.keys()
    replaced = {n for n in common if before[n].uid != after[n].uid}
    return Difference(
        (before.keys() - after.keys()) | replaced,
        (after.keys() - before.keys()) | replaced,
        {n for n in common - replaced if before[n].restarts != after[n].restarts},
    )


def wait_substituted(
    cluster: Cluster,
    namespace: str,
    group_name: str,
    before: Mapping[str, Identity],
    lost: set[str],
    seconds: float = READY_SECONDS,
) -> set[str]:
    """Wait until exactly the `lost` pods were replaced and all is Ready; names of the new ones."""

    def replaced() -> bool:
        """A pod on a silent node stays, leaving: it cannot confirm its end."""
        found = identities(cluster, namespace)
        staying = [pod for pod in pods(cluster, namespace) if not leaving(pod)]
        return (
            lost <= difference(before, found).gone
            and len(found) == len(before)
            and all(is_ready(pod) for pod in staying)
            and is_ready(group(cluster, namespace, group_name))
        )

    until(
        f"{sorted(lost)} replaced and all Ready",
        replaced,
        seconds,
        instead=lambda: explain(cluster, namespace),
    )
    change = difference(before, identities(cluster, namespace))
    assert change.gone == lost, f"more than the lost pods went: {change}"
    assert len(change.new) == len(lost), f"not one substitute per lost pod: {change}"
    assert not change.restarted, f"others were restarted: {change}"
    return change.new
