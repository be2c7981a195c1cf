"""Rights of authors on a real API server: the chart's policy refuses, or the operator does.

The tenant may write PDServices and ScenarioGroups and nothing else. In namespace GUARDED the
chart's ValidatingAdmissionPolicy is installed, in OPEN it is not and an operator runs.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from tests.support.api_objects import edited, pdservice, scenariogroup
from tests.support.chart import NAMESPACE as OPERATOR_NAMESPACE
from tests.support.chart import render
from tests.support.escapes import ESCAPES, Escape
from tests.support.rest import Answer, Rest

from localcluster.controlplane import ControlPlane
from pdserve.controllers.core import Core
from pdserve.controllers.ratio.ratio_loop import NoSource
from pdserve.controllers.shared.instance_calls import EngineApi
from pdserve.controllers.shared.tokens import Tokens
from pdserve.dst.world_engines import Engines
from pdserve.exposition import Registry
from pdserve.kube.connect import connect
from pdserve.ratio.types import LoopSettings

pytestmark = [pytest.mark.api, pytest.mark.timeout(240), pytest.mark.invariant(15)]

GUARDED, OPEN = "escapes-guarded", "escapes-open"
TENANT, POD_AUTHOR, READER = "tenant", "pod-author", "reader"
OPERATOR = f"system:serviceaccount:{OPERATOR_NAMESPACE}:pdserve-operator"
KINDS = {"PDService": "pdservices", "ScenarioGroup": "scenariogroups"}
SECRETS = ("payroll", "shop-token")
Json = dict[str, Any]

WRITE = {"apiGroups": ["pdserve.io"], "resources": ["pdservices", "scenariogroups"],
         "verbs": ["create", "get", "patch", "update"]}  # fmt: skip
PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}
READ = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": list(SECRETS),
        "verbs": ["get"]}  # fmt: skip
RIGHTS = {
    TENANT: [WRITE],
    POD_AUTHOR: [WRITE, PODS],
    READER: [WRITE, PODS, READ],
    OPERATOR: [WRITE],
}
RBAC = "rbac.authorization.k8s.io"
ADMISSION = "/apis/admissionregistration.k8s.io/v1/{}"


def ok(answer: Answer) -> Answer:
    assert answer.code in (200, 201), answer.body
    return answer


def wanted(kind: str, name: str = "shop", edits: Json | None = None) -> Json:
    base = pdservice() if kind == "PDService" else scenariogroup()
    counts = {}
    if kind == "ScenarioGroup":
        counts = {"spec.replicas": 1, "spec.prefill.replicas": 1, "spec.decode.replicas": 1,
                  "spec.service": "mine"}  # fmt: skip
    return edited(base, {"metadata.name": name} | counts | (edits or {}))


def with_template(kind: str, template: Json, name: str = "shop") -> Json:
    return wanted(kind, name, {"spec.decode.template": template})


def path(kind: str, namespace: str, name: str = "") -> str:
    base = f"/apis/pdserve.io/v1alpha1/namespaces/{namespace}/{KINDS[kind]}"
    return f"{base}/{name}" if name else base


class As(Rest):
    """Requests as another user, by the administrator's right to impersonate."""

    def __init__(self, rest: Rest, user: str) -> None:
        self.__dict__.update(rest.__dict__)
        self.user = user

    def call(self, *args: Any, **kwargs: Any) -> Answer:
        return super().call(*args, user=self.user, **kwargs)

    def tries(self, kind: str, body: Json, namespace: str = GUARDED) -> Answer:
        """Would it be created?"""
        return self.create(path(kind, namespace), body, dryRun="All")


@pytest.fixture(scope="module")
def users(rest: Rest) -> Iterator[dict[str, As]]:
    """The users, in both namespaces; the policy is in force in GUARDED."""
    for namespace in (GUARDED, OPEN):
        ok(rest.create("/api/v1/namespaces", {"metadata": {"name": namespace}}))
        for index, (user, rules) in enumerate(RIGHTS.items()):
            roles = f"/apis/{RBAC}/v1/namespaces/{namespace}"
            name = {"metadata": {"name": f"u{index}"}}
            ok(rest.create(f"{roles}/roles", {**name, "rules": rules}))
            ok(rest.create(f"{roles}/rolebindings", {
                **name,
                "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": f"u{index}"},
                "subjects": [{"apiGroup": RBAC, "kind": "User", "name": user}],
            }))  # fmt: skip
    made = []
    for document in render(operator={"watchNamespace": GUARDED}):
        if document["kind"].startswith("ValidatingAdmission"):
            plural = {"ValidatingAdmissionPolicy": "validatingadmissionpolicies"}.get(
                document["kind"], "validatingadmissionpolicybindings"
            )
            ok(rest.create(ADMISSION.format(plural), document))
            made.append(f"{ADMISSION.format(plural)}/{document['metadata']['name']}")
    assert len(made) == 2
    found = {user: As(rest, user) for user in RIGHTS}
    deadline = time.monotonic() + 60
    escape = with_template("PDService", {"spec": {"hostPID": True}})
    while found[TENANT].tries("PDService", escape).code == 201:
        assert time.monotonic() < deadline, "the policy is not in force"
        time.sleep(0.2)
    yield found
    for url in made:
        rest.call("DELETE", url)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("escape", ESCAPES, ids=lambda e: e.name)
def test_the_policy_refuses_an_escape(users: dict[str, As], kind: str, escape: Escape) -> None:
    answer = users[TENANT].tries(kind, with_template(kind, escape.template))
    assert answer.code == 403, answer.body
    assert "template" in answer.body["message"] or "spec.service" in answer.body["message"]


NAMED = [e for e in ESCAPES if "payroll" in str(e.template)]


@pytest.mark.parametrize("escape", NAMED, ids=lambda e: e.name)
def test_a_secret_needs_the_right_to_get_it(users: dict[str, As], escape: Escape) -> None:
    body = with_template("PDService", escape.template)
    refused = users[POD_AUTHOR].tries("PDService", body)
    assert refused.code == 403
    assert "allowed to get each Secret" in refused.body["message"]
    assert users[READER].tries("PDService", body).code == 201


OF_SERVER: Json = {"path": "/m", "uri": {"url": "http://other.example/m", "sha256": "a" * 64,
                                   "secretRef": {"name": "payroll"}}}  # fmt: skip
SECRET_FIELDS: Json = {
    "spec.engine.imagePullSecrets": [{"name": "payroll"}],
    "spec.gateway": {"auth": {"secretRef": {"name": "payroll"}}},
    "spec.model.source": OF_SERVER,
}


@pytest.mark.parametrize(
    ("kind", "field"),
    [(k, f) for k in KINDS for f in SECRET_FIELDS if (k, f) != ("ScenarioGroup", "spec.gateway")],
)
def test_so_does_one_that_a_field_names(users: dict[str, As], kind: str, field: str) -> None:
    edits = {field: SECRET_FIELDS[field]}
    if kind == "ScenarioGroup":
        edits["spec.service"] = "shop"
    body = wanted(kind, edits=edits)
    for user, code in ((TENANT, 403), (POD_AUTHOR, 403), (READER, 201)):
        answer = users[user].tries(kind, body)
        assert answer.code == code, (user, answer.body)
    if field == "spec.model.source" and kind == "PDService":
        assert field in users[TENANT].tries(kind, body).body["message"]


def test_weights_of_an_image_or_an_open_server_need_no_right(users: dict[str, As]) -> None:
    """No more than the engine's image gives, which is the author's choice too."""
    open_server = {key: value for key, value in OF_SERVER["uri"].items() if key != "secretRef"}
    for source in ({"image": {"reference": "w:1"}}, {"uri": open_server}):
        body = wanted("PDService", edits={"spec.model.source": {"path": "/m", **source}})
        assert users[TENANT].tries("PDService", body).code == 201


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_of_the_model_needs_the_right_to_create_pods(
    users: dict[str, As], kind: str
) -> None:
    source = {"path": "/models/x", "pvc": {"name": "of-another-team"}}
    service = {"spec.service": "shop"} if kind == "ScenarioGroup" else {}
    body = wanted(kind, edits={"spec.model.source": source, **service})
    refused = users[TENANT].tries(kind, body)
    assert refused.code == 403
    assert "spec.model.source.pvc" in refused.body["message"]
    assert users[READER].tries(kind, body).code == 201
    no_claim = wanted("PDService", edits={"spec.model.source": {"path": "/models/x"}})
    assert users[TENANT].tries("PDService", no_claim).code == 201


def test_a_group_by_hand_needs_the_secrets_of_its_service(users: dict[str, As]) -> None:
    body = wanted("ScenarioGroup", edits={"spec.service": "shop"})
    refused = users[POD_AUTHOR].tries("ScenarioGroup", body)
    assert refused.code == 403
    assert "spec.service" in refused.body["message"]
    assert users[READER].tries("ScenarioGroup", body).code == 201


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_is_not_asked(users: dict[str, As], kind: str) -> None:
    body = with_template(kind, {"spec": {"serviceAccountName": "x"}})
    assert users[OPERATOR].tries(kind, body).code == 201


def test_who_names_nothing_needs_no_other_right(users: dict[str, As]) -> None:
    assert users[TENANT].tries("PDService", wanted("PDService")).code == 201


def test_a_template_of_odd_shape_is_refused_not_let_through(users: dict[str, As]) -> None:
    shapes: tuple[Json, ...] = (
        {"volumes": 5},
        {"volumes": [{"name": "v", "secret": 5}]},
        {"containers": [{"name": "engine", "envFrom": [{"secretRef": {}}]}]},
    )
    for spec in shapes:
        answer = users[POD_AUTHOR].tries("PDService", with_template("PDService", {"spec": spec}))
        assert answer.code in (403, 422), (spec, answer.body)


def test_an_update_is_asked_like_a_create_where_it_changes_the_spec(
    users: dict[str, As], rest: Rest
) -> None:
    ok(rest.create(path("PDService", GUARDED), with_template("PDService", {"spec": {}}, "live")))
    live, tenant = path("PDService", GUARDED, "live"), users[TENANT]
    assert tenant.patch(live, {"metadata": {"labels": {"a": "b"}}}).code == 200
    answer = tenant.patch(live, {"spec": {"gateway": {"replicas": 2}}})
    assert answer.code == 403, "the template is still there, and still not its own to use"
    gone = {"spec": {"decode": {"template": None}}}
    assert tenant.patch(live, gone).code == 200
    escape = {"spec": {"decode": {"template": {"spec": {"hostPID": True}}}}}
    assert tenant.patch(live, escape).code == 403
    assert rest.call("DELETE", live).code == 200


async def test_without_the_policy_the_operator_makes_no_pod(
    control_plane: ControlPlane, users: dict[str, As], rest: Rest
) -> None:
    """Twelve escapes by each kind; what an administrator allowed for another namespace too."""
    domain = {
        "apiVersion": "pdserve.io/v1alpha1",
        "kind": "RoCEDomain",
        "metadata": {"name": "az1"},
        "spec": {"nodeSelector": {"matchLabels": {"escapes": "none"}},
                 "levels": [{"name": "leaf", "nodeLabel": "leaf", "hopCost": 1}]},
    }  # fmt: skip
    ok(rest.create("/apis/pdserve.io/v1alpha1/rocedomains", domain))
    written = []
    for index, escape in enumerate(ESCAPES):
        for kind in KINDS:
            body = with_template(kind, escape.template, f"e{index}")
            if kind == "ScenarioGroup":
                body["spec"]["service"] = f"s{index}"
            ok(users[TENANT].create(path(kind, OPEN), body))
            written.append((kind, f"e{index}"))
    for kind in KINDS:
        # Its Secret would be sent to a server of the tenant's choice.
        body = wanted(kind, "sent", {"spec.model.source": OF_SERVER})
        ok(users[TENANT].create(path(kind, OPEN), body))
        written.append((kind, "sent"))
    spy = wanted("ScenarioGroup", "spy", {"spec.service": "payroll"})
    secret = {"metadata": {"name": "payroll-token"}, "stringData": {"token": "x"}}
    ok(rest.create(f"/api/v1/namespaces/{OPEN}/secrets", secret))
    ok(users[TENANT].create(path("ScenarioGroup", OPEN), spy))
    written.append(("ScenarioGroup", "spy"))

    client = await connect(control_plane.kubeconfig)
    core = Core(
        client, namespace=OPEN, gateway_image="pdserve/gateway:test",
        operator_namespace="pdserve-system", registry=Registry(),
        now=time.time, rng=random.Random(1),
    )  # fmt: skip
    engines = Engines()

    async def make_engines(_tokens: Tokens) -> EngineApi:
        return engines

    async def everything() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(core.follow())
            tasks.create_task(core.act(make_engines, NoSource(), LoopSettings()))

    def verdict(kind: str, name: str) -> tuple[str, str]:
        live = rest.get(path(kind, OPEN, name)).body
        listed = live.get("status", {}).get("conditions", ())
        found: dict[str, str] = next((c for c in listed if c["type"] == "TemplateValid"), {})
        return found.get("status", ""), found.get("reason", "")

    task = asyncio.create_task(everything())
    try:
        deadline = time.monotonic() + 120
        for one in written:
            while await asyncio.to_thread(verdict, *one) != ("False", "NotAllowed"):
                assert time.monotonic() < deadline, one
                await asyncio.sleep(0.2)
        pods = (await asyncio.to_thread(rest.get, f"/api/v1/namespaces/{OPEN}/pods")).body["items"]
        assert pods == []
        groups = (await asyncio.to_thread(rest.get, path("ScenarioGroup", OPEN))).body["items"]
        assert len(groups) == len(ESCAPES) + 2, "no ScenarioGroup was made of a refused PDService"
        assert not task.done()
    finally:
        task.cancel()
        with suppress(BaseException):
            await task
        await client.close()
        for kind, name in written:
            rest.call("DELETE", path(kind, OPEN, name))
        rest.call("DELETE", "/apis/pdserve.io/v1alpha1/rocedomains/az1")
