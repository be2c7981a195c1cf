"""The whole life of a PDService, so that the operator does everything that it ever does.

What uses which right is said at each step; `tests.support.audit` compares. Takes any cluster with
the operator in it and the RoCEDomain `demo`.
"""

from __future__ import annotations

import functools
import json

from tests.support import scenarios as s
from tests.support.installed import fixed, pdservice, scenario

from pdserve.controllers.from_options import CLAIM
from pdserve.controllers.shared import event_reasons as reasons
from pdserve.groups.naming import pod_name
from pdserve.wire import names

MATCH = {"match": {"headers": {"x-scenario": "search"}}}
GATEWAY_KINDS = (
    "serviceaccount", "role", "rolebinding", "deployment", "poddisruptionbudget", "service",
)  # fmt: skip


def life(namespace: str, name: str, chat: s.Json, *, search: bool = True, **spec: object) -> s.Json:
    """A PDService with scenario `chat` of these counts, and `search` 1P1D before it."""
    scenarios = [scenario("search", fixed(1, 1, 1), **MATCH)] if search else []
    return pdservice(namespace, name, *scenarios, scenario("chat", chat), **spec)


def live_through(cluster: s.Cluster, namespace: str, name: str) -> None:
    """Everything from its birth until just before its deletion; ends with one scenario, 1P1D.

    A second PDService, NAME-edited, stands beside it in the end, without instances. Instances of
    the removed scenario may stay for half a minute, until the garbage collector knows new kinds.
    """
    chat = names.scenario_group_name(name, "chat")
    apply = cluster.apply
    # Creates all kinds: token, groups, pods, tables, the gateway's objects; status of each.
    apply(life(namespace, name, fixed(1, 1, 1)), namespace=namespace)
    hand_edited_counts(cluster, namespace, f"{name}-edited")
    s.wait_service(cluster, namespace, name)
    foreign_pod(cluster, namespace, name)
    # A second P/D group, then one again: drains, pods and table deleted.
    apply(life(namespace, name, fixed(2, 1, 1)), namespace=namespace)
    hand_edited_gateway(cluster, namespace, name)
    _until_counted(cluster, namespace, chat, (2, 1, 1))
    apply(life(namespace, name, fixed(1, 1, 1)), namespace=namespace)
    _until_counted(cluster, namespace, chat, (1, 1, 1))
    # One instance lost.
    alive = s.identities(cluster, namespace)
    victim = s.name_of(s.pods(cluster, namespace, role="decode", scenario="chat")[0])
    cluster.kubectl("delete", "pod", victim, "-n", namespace, "--force", "--grace-period=0")
    s.wait_substituted(cluster, namespace, chat, alive, {victim})
    # Changed gateway, scenario removed, another revision of every instance.
    changed = life(namespace, name, fixed(1, 1, 1), search=False, gateway={"replicas": 2})
    changed["spec"]["decode"]["env"] = [{"name": "REVISION", "value": "2"}]
    before = {s.name_of(pod) for pod in s.pods(cluster, namespace, scenario="chat")}
    apply(changed, namespace=namespace)
    s.wait_service(cluster, namespace, name)
    s.wait_settled(cluster, namespace, chat)
    stay = before & s.identities(cluster, namespace).keys()
    assert not stay, f"of the old revision: {stay}"
    # Taken back: its revision becomes the newest of the history, which is deleted and made again.
    del changed["spec"]["decode"]["env"]
    apply(changed, namespace=namespace)
    s.wait_service(cluster, namespace, name)
    s.wait_settled(cluster, namespace, chat)
    removed = names.scenario_group_name(name, "search")
    s.until("the removed scenario is gone", lambda: not s.group(cluster, namespace, removed))
    changed_domain(cluster)
    s.wait_service(cluster, namespace, name)
    network_policies(cluster, namespace, name, changed)
    rotated_credentials(cluster, namespace, name)
    s.wait_service(cluster, namespace, name)


def network_policies(cluster: s.Cluster, namespace: str, name: str, document: s.Json) -> None:
    """Asked for, met without the operator's label, changed, and no longer asked for."""
    path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}-gateway"

    def allowed() -> object:
        policy = cluster.get(path)
        return None if policy is None else policy["spec"]["ingress"][0].get("from")

    peer = {"podLabels": {"app": "web"}}
    document["spec"]["networkPolicy"] = {"clients": [peer]}
    cluster.apply(document, namespace=namespace)
    s.until("clients are limited", allowed)
    label = f"{names.LABEL_MANAGED_BY}-"
    cluster.kubectl("label", f"networkpolicy/{name}-gateway", "-n", namespace, label)

    def labelled() -> bool:
        found = (cluster.get(path) or {"metadata": {}})["metadata"].get("labels") or {}
        return names.LABEL_MANAGED_BY in found

    s.until("the policy's label is back", labelled)
    document["spec"]["networkPolicy"] = {"clients": []}
    cluster.apply(document, namespace=namespace)
    s.until("any client may call", lambda: allowed() is None and cluster.get(path) is not None)
    del document["spec"]["networkPolicy"]
    cluster.apply(document, namespace=namespace)
    s.until("the policy is gone", lambda: cluster.get(path) is None)


def rotated_credentials(cluster: s.Cluster, namespace: str, name: str) -> None:
    """`pdserve.io/rotate`: Secrets and the annotations of pods are patched."""
    rotate = f"{names.ANNOTATION_ROTATE}=1"
    cluster.kubectl("annotate", f"pdservice/{name}", "-n", namespace, "--overwrite", rotate)

    def rotated() -> bool:
        found = s.condition(s.service(cluster, namespace, name), "CredentialsRotated")
        return found.get("status") == "True"

    s.until("the credentials were rotated", rotated)


def _until_counted(
    cluster: s.Cluster, namespace: str, group_name: str, counts: tuple[int, int, int]
) -> None:
    s.until(f"counts are {counts}", lambda: s.counts(cluster, namespace, group_name) == counts)
    s.wait_settled(cluster, namespace, group_name)


def foreign_pod(cluster: s.Cluster, namespace: str, name: str) -> None:
    """A pod of the next instance's name, which the operator does not cache: it reads it (get)."""
    chat = names.scenario_group_name(name, "chat")
    pod = s.pods(cluster, namespace, scenario="chat", role="prefill")[0]
    revision = pod["metadata"]["labels"][names.LABEL_REVISION]
    taken = pod_name(names.slot_name(chat, 0, "prefill", 1), revision, None)
    foreign = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": taken, "namespace": namespace},
        # Never runs, and so needs neither image nor node.
        "spec": {**_minimal_pod(), "schedulingGates": [{"name": "example.com/never"}]},
    }
    cluster.apply(foreign, namespace=namespace)
    cluster.apply(life(namespace, name, fixed(1, 2, 1)), namespace=namespace)

    def refused() -> bool:
        found = s.condition(s.group(cluster, namespace, chat), "Placed")
        return found.get("reason") == "NameTaken" and taken in found["message"]

    s.until("the operator says whose name is taken", refused)
    cluster.apply(life(namespace, name, fixed(1, 1, 1)), namespace=namespace)
    cluster.kubectl("delete", "pod", taken, "-n", namespace, "--wait=false")
    _until_counted(cluster, namespace, chat, (1, 1, 1))


def _minimal_pod() -> s.Json:
    return {
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "none",
                "image": "none",
                "securityContext": {
                    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }  # fmt: skip


def hand_edited_counts(cluster: s.Cluster, namespace: str, name: str) -> None:
    """Twice the same: one Event, whose count rises (events patch).

    Of a service whose RoCEDomain is not there, so that no instance comes of the edits.
    """
    chat = names.scenario_group_name(name, "chat")
    wanted = life(namespace, name, fixed(1, 1, 1), search=False)
    wanted["spec"]["fabric"]["domainRef"]["name"] = "nowhere"
    cluster.apply(wanted, namespace=namespace)
    s.until("counts are set", lambda: s.counts(cluster, namespace, chat)[0] == 1)

    def noted(count: int) -> bool:
        found = s.events(cluster, namespace, reasons.HAND_EDIT)
        return any((e.get("deprecatedCount") or e.get("count") or 1) >= count for e in found)

    for count in (1, 2):
        patch = json.dumps({"spec": {"replicas": 2}})
        cluster.kubectl("patch", "psg", chat, "-n", namespace, "--type=merge", "-p", patch)
        s.until("the counts are put back", lambda: s.counts(cluster, namespace, chat)[0] == 1)
        s.until(f"it is noted {count} times", functools.partial(noted, count))


def hand_edited_gateway(cluster: s.Cluster, namespace: str, name: str) -> None:
    """What was taken out or put in by hand is put right.

    Without the label by which the operator finds it, an object is created, met, read and applied
    (get and patch of every kind); rights added to the gateway's Role go again.
    """
    gateway = f"{name}-gateway"
    label, gone = names.LABEL_MANAGED_BY, f"{names.LABEL_MANAGED_BY}-"
    routes = names.routes_configmap_name(name)
    objects = [f"{kind}/{gateway}" for kind in GATEWAY_KINDS] + [f"configmap/{routes}"]
    cluster.kubectl("label", *objects, "-n", namespace, gone)
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
    patch = json.dumps({"rules": rules})
    cluster.kubectl("patch", "role", gateway, "-n", namespace, "--type=merge", "-p", patch)

    def right() -> bool:
        text = cluster.kubectl("get", *objects, "-n", namespace, "-o", "json")
        ours = json.loads(text)["items"]
        role = next(o for o in ours if o["kind"] == "Role")
        labelled = all(label in o["metadata"].get("labels", {}) for o in ours)
        return labelled and role["rules"][0]["resources"] == ["configmaps"]

    s.until("labels and rules are as they were", right)


def changed_domain(cluster: s.Cluster) -> None:
    """Another RoCEDomain status (rocedomains/status patch)."""
    path = f"{s.API}/rocedomains/demo"
    before = cluster.get(path)
    assert before is not None
    levels = before["spec"]["levels"]
    for cost in (levels[0]["hopCost"] + 1, levels[0]["hopCost"]):
        changed = [{**levels[0], "hopCost": cost}, *levels[1:]]
        patch = json.dumps({"spec": {"levels": changed}})
        cluster.kubectl("patch", "rdom", "demo", "--type=merge", "-p", patch)

        def seen() -> bool:
            now = cluster.get(path)
            assert now is not None
            generation: int = now["metadata"]["generation"]
            return bool(now["status"].get("observedGeneration") == generation)

        s.until("the RoCEDomain was looked at", seen)


def leftovers(cluster: s.Cluster, *namespaces: str) -> list[str]:
    """Everything in these namespaces that the product made or was made for it.

    Not the operator's claim, which says whose the objects are: it is no service's, and outlives an
    uninstall (docs/install.md).
    """
    kinds = (
        "pods,services,endpointslices,deployments,replicasets,configmaps,secrets,serviceaccounts,"
        "roles,rolebindings,poddisruptionbudgets,leases,pdservices,scenariogroups,"
        "controllerrevisions"
    )
    left = []
    for namespace in namespaces:
        found = json.loads(cluster.kubectl("get", kinds, "-n", namespace, "-o", "json"))["items"]
        staying = ("kube-root-ca.crt", "default", "keys", CLAIM)
        left += [
            f"{o['kind']} {namespace}/{s.name_of(o)}" for o in found if s.name_of(o) not in staying
        ]
    return left


def finalized(cluster: s.Cluster, namespace: str) -> list[str]:
    """Objects of the product with a finalizer, or with notes of a framework: they could get stuck
    without their controller.
    """
    kinds = "pdservices,scenariogroups,configmaps,secrets,pods,deployments,services"
    found = json.loads(cluster.kubectl("get", kinds, "-n", namespace, "-o", "json"))["items"]
    found += json.loads(cluster.kubectl("get", "rocedomains", "-o", "json"))["items"]
    return [
        f"{o['kind']} {s.name_of(o)}"
        for o in found
        if o["metadata"].get("finalizers")
        or any("kopf" in key for key in o["metadata"].get("annotations", {}))
    ]
