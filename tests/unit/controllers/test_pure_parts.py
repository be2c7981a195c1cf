"""Counts per mode, decision lists, comparison, gateway objects, route tables, first counts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import yaml

from pdserve.api import DecisionRecord, PDService, RoCEDomain
from pdserve.controllers.ratio.ratio_loop import attainment_of
from pdserve.desired.compare import covers
from pdserve.desired.counts import CountsObserved, plan_counts
from pdserve.desired.decisions import KEPT, appended, entry, is_news
from pdserve.desired.objects import gateway_objects, url
from pdserve.desired.ratio_input import budget_for, first_counts
from pdserve.desired.routing import (
    parse_routes,
    prompt_bytes_of,
    route_table,
    routed_instances,
)
from pdserve.desired.templates import template_of_service
from pdserve.dst.world_service import service
from pdserve.engines.pod_profile import Rights
from pdserve.engines.pods_template import TemplateError
from pdserve.ratio.types import Bounds, Counts, Range, Unknown
from pdserve.wire import names
from pdserve.wire.links import LinkReport
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteTable, served

OWNER = {"apiVersion": "pdserve.io/v1alpha1", "kind": "PDService", "name": "shop", "uid": "u",
         "controller": True}  # fmt: skip


def parsed(**spec: Any) -> PDService:
    return PDService.parse(service(**spec))


# --- counts ------------------------------------------------------------------------------------

BOUNDS = Bounds(Range(1, 4), Range(1, 4), Range(1, 4))
LOW, MID, HIGH = Counts(1, 1, 1), Counts(2, 2, 1), Counts(9, 9, 9)


def seen(**over: Any) -> CountsObserved:
    base = CountsObserved("Auto", BOUNDS, None, LOW, None, None, None)
    return dataclasses.replace(base, **over)


CASES: list[tuple[str, CountsObserved, Counts | None, str | None, bool]] = [
    # case, seen, applied, recorded reason, hand edit
    ("new", seen(), LOW, "InitialCounts", False),
    ("settled", seen(live=LOW, applied=LOW, applied_from=LOW), None, None, False),
    ("decided, not yet applied", seen(live=LOW, applied=MID, applied_from=LOW), MID, None, False),
    ("hand edit", seen(live=MID, applied=LOW, applied_from=LOW), LOW, None, True),
    ("bounds narrowed", seen(live=HIGH, applied=HIGH, applied_from=LOW), Counts(4, 4, 4),
     "BoundsChanged", False),
    ("found without a record", seen(live=MID), None, "InitialCounts", False),
    ("Advise keeps", seen(mode="Advise", live=MID, applied=MID, applied_from=LOW), None, None,
     False),
    ("Fixed", seen(mode="Fixed", fixed=MID, live=LOW, applied=LOW, applied_from=LOW), MID,
     "FixedCounts", False),
    ("Fixed, crash after the record",
     seen(mode="Fixed", fixed=MID, live=LOW, applied=MID, applied_from=LOW), MID, None, False),
    ("Fixed, hand edit", seen(mode="Fixed", fixed=MID, live=HIGH, applied=MID, applied_from=LOW),
     MID, None, True),
    ("External, new", seen(mode="External"), LOW, "InitialCounts", False),
    ("External, crash after the record", seen(mode="External", applied=LOW, applied_from=LOW), LOW,
     None, False),
    ("External, untouched", seen(mode="External", live=MID, applied=MID, applied_from=MID), None,
     None, False),
    ("External, set by others", seen(mode="External", live=HIGH, applied=MID, applied_from=MID),
     None, "ExternalOwner", False),
]  # fmt: skip


@pytest.mark.parametrize(("seen_", "apply", "reason", "edit"), [c[1:] for c in CASES],
                         ids=[c[0] for c in CASES])  # fmt: skip
def test_one_owner_of_the_counts(
    seen_: CountsObserved, apply: Counts | None, reason: str | None, edit: bool
) -> None:
    plan = plan_counts(seen_)
    assert plan.apply == apply
    assert (plan.record.reason if plan.record else None) == reason
    assert (plan.hand_edit is not None) == edit


# --- decisions ---------------------------------------------------------------------------------


def decision(outcome: str, n: int = 0, reason: str = "Steady") -> dict[str, Any]:
    return entry(
        time=1e9 + n, before=LOW, to=MID if outcome == "Applied" else LOW, outcome=outcome,
        reason=reason, message="m", inputs={"rate": "1.5"},
    )  # fmt: skip


def test_the_newest_applied_decision_is_never_pushed_out() -> None:
    entries: list[dict[str, Any]] = []
    entries = appended(entries, decision("Applied", 0, "Old"))
    entries = appended(entries, decision("Applied", 1, "New"))
    for n in range(2, 40):
        entries = appended(entries, decision("Held", n))
    assert len(entries) == KEPT
    assert [e["reason"] for e in entries if e["outcome"] == "Applied"] == ["New"]
    assert entries[-1]["time"] > entries[-2]["time"]


@pytest.mark.parametrize(
    ("outcome", "reason", "news"),
    [("Held", "Steady", False), ("Held", "HoldNoData", True), ("Blocked", "Steady", True),
     ("Applied", "Steady", True)],
)  # fmt: skip
def test_what_counts_as_news(outcome: str, reason: str, news: bool) -> None:
    old = DecisionRecord.parse(decision("Held"))
    assert is_news(old, decision(outcome, 1, reason)) is news
    assert is_news(None, decision("Held"))


def test_an_entry_fits_the_schema_whatever_its_size() -> None:
    big = entry(
        time=0, before=LOW, to=MID, outcome="Applied", reason="ModelFloor", message="x" * 5000,
        inputs={f"key{n}": "1" for n in range(60)},
    )  # fmt: skip
    DecisionRecord.parse(big)


# --- comparison --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("live", "wanted", "same"),
    [
        ({"a": 1, "default": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": 1}, False),
        ({"l": [{"a": 1, "d": 0}, {"a": 2}]}, {"l": [{"a": 1}, {"a": 2}]}, True),
        ({"l": [{"a": 1}, {"a": 2}]}, {"l": [{"a": 1}]}, False),
        ({}, {"l": []}, True),
        ({}, {"m": {}}, True),
        ({"l": [1]}, {"l": []}, False),
        ({"m": None}, {"m": {"a": 1}}, False),
    ],
)
def test_only_fields_that_we_set_are_compared(live: Any, wanted: Any, same: bool) -> None:
    assert covers(live, wanted) is same


# --- the gateway -------------------------------------------------------------------------------


def by_kind(**spec: Any) -> dict[str, dict[str, Any]]:
    made = gateway_objects(parsed(**spec), "registry/gateway:1", OWNER, "f1")
    return {o["kind"]: o for o in made}


def test_a_gateway_may_read_its_route_table_and_nothing_else() -> None:
    made = by_kind()
    assert made["Role"]["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["shop-routes"],
            "verbs": ["list", "watch"],
        }
    ]
    binding = made["RoleBinding"]
    assert binding["subjects"][0]["name"] == made["ServiceAccount"]["metadata"]["name"]
    pod = made["Deployment"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == made["ServiceAccount"]["metadata"]["name"]


def test_every_object_of_the_gateway_is_owned_and_selectable() -> None:
    made = by_kind()
    for obj in made.values():
        assert obj["metadata"]["ownerReferences"] == [OWNER]
        assert obj["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "pdserve"
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert made["Service"]["spec"]["selector"].items() <= labels.items()
    assert made["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_gateways_arguments_are_ones_it_takes() -> None:
    from pdserve.gateway.process import _parse

    container = by_kind()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    parsed_args = _parse(container["args"])
    assert "default/shop-routes" in container["args"][1]
    assert parsed_args.port == 8000


def test_a_gateway_sees_the_request_credential_and_no_other() -> None:
    template = by_kind()["Deployment"]["spec"]["template"]
    spec = template["spec"]
    assert [v["secret"]["secretName"] for v in spec["volumes"]] == ["shop-request"]
    (container,) = spec["containers"]
    assert "valueFrom" not in str(container["env"])
    file = next(e["value"] for e in container["env"] if e["name"] == "PDSERVE_REQUEST_TOKEN_FILE")
    assert file.startswith(container["volumeMounts"][0]["mountPath"] + "/")
    assert template["metadata"]["annotations"]["pdserve.io/credentials"] == "f1"


@pytest.mark.parametrize(("given", "drain"), [(None, 60), (0, 30), (10, 30), (600, 600)])
def test_a_stopped_gateway_has_time_for_its_streams(given: int | None, drain: int) -> None:
    """New connections come in until the Service let go of it; then its streams finish."""
    from pdserve.gateway.process import _parse

    recovery = {} if given is None else {"recovery": {"drainSeconds": given}}
    pod = by_kind(**recovery)["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    serves_on = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert serves_on >= 2
    assert _parse(container["args"]).drain_seconds == drain
    assert pod["terminationGracePeriodSeconds"] >= serves_on + drain + 5


GATEWAY = {
    "replicas": 2,
    "port": 443,
    "auth": {"secretRef": {"name": "keys"}},
    "tls": {"secretRef": {"name": "cert"}},
    "maxBodyBytes": 65536,
    "cors": {"origins": ["https://chat.example.com", "http://localhost:3000"]},
    "resources": {"requests": {"memory": "512Mi"}, "limits": {"cpu": "2"}},
    "template": {
        "metadata": {"labels": {"cost-center": "7"}},
        "spec": {
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "securityContext": {"runAsUser": None, "runAsGroup": None},
        },
    },
}


def test_a_gateway_is_as_its_fields_say() -> None:
    """K7.2: what LimitRanges, label policies, dedicated nodes and OpenShift ask of it."""
    from pdserve.gateway.front import body_bytes

    made = by_kind(gateway=GATEWAY)
    template = made["Deployment"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert template["metadata"]["labels"]["cost-center"] == "7"
    assert template["spec"]["tolerations"] == [{"key": "dedicated", "operator": "Exists"}]
    assert "runAsUser" not in template["spec"]["securityContext"]
    assert container["resources"] == {"requests": {"memory": "512Mi"}, "limits": {"cpu": "2"}}
    env = {e["name"]: e["value"] for e in container["env"]}
    assert body_bytes(env, 0) == 65536
    assert env["PDSERVE_CORS_ORIGINS"] == "https://chat.example.com,http://localhost:3000"
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert env["PDSERVE_TLS_CERT"] == f"{mounts['tls']}/tls.crt"
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert url(parsed(gateway=GATEWAY)) == "https://shop-gateway.default.svc"
    assert made["Service"]["spec"]["ports"][0]["appProtocol"] == "https"
    assert (
        by_kind()["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"]
        == env["PDSERVE_METRICS_PORT"]
        == "9090"
    )


def test_a_field_taken_out_of_the_gateway_is_a_change() -> None:
    before, after = by_kind(gateway=GATEWAY), by_kind()
    assert not covers(before["Deployment"], after["Deployment"])
    without = {k: v for k, v in GATEWAY.items() if k != "template"}
    assert not covers(before["Deployment"], by_kind(gateway=without)["Deployment"])


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ({"spec": {"containers": [{"name": "side", "image": "x"}]}}, "template.spec.containers"),
        ({"spec": {"serviceAccountName": "x"}}, "template.spec.serviceAccountName"),
        ({"spec": {"volumes": []}}, "template.spec.volumes"),
        ({"spec": {"hostNetwork": True}}, "template.spec.hostNetwork"),
        ({"spec": {"securityContext": {"runAsUser": 0}}},
         "template.spec.securityContext.runAsUser"),
        ({"spec": {"securityContext": {"$patch": "delete"}}},
         "template.spec.securityContext.$patch"),
        ({"metadata": {"labels": {"app.kubernetes.io/component": "instance"}}},
         "template.metadata.labels[app.kubernetes.io/component]"),
        ({"metadata": {"labels": {"pdserve.io/service": "x"}}},
         "template.metadata.labels[pdserve.io/service]"),
    ],
    ids=str,
)  # fmt: skip
def test_a_gateways_template_says_where_and_as_whom_it_runs_and_no_more(
    template: dict[str, Any], path: str
) -> None:
    service = parsed(gateway={"template": template})
    with pytest.raises(TemplateError) as refused:
        gateway_objects(service, "i", OWNER, "f1")
    assert refused.value.path == path
    found = template_of_service(service, OWNER, Rights())
    assert (found.status, found.message.partition(" ")[0]) == ("False", "gateway:")


def test_gateways_stand_on_different_nodes_where_that_is_possible() -> None:
    template = by_kind()["Deployment"]["spec"]["template"]
    (spread,) = template["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_a_drain_of_nodes_takes_one_gateway_at_a_time() -> None:
    made = by_kind()
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    budget = made["PodDisruptionBudget"]["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["maxUnavailable"] == 1, "a gateway that stands alone may go too"


def test_the_service_leads_to_the_gateways_named_port() -> None:
    made = by_kind()
    (port,) = made["Service"]["spec"]["ports"]
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert (port["name"], port["appProtocol"], port["port"]) == ("http", "http", 80)
    assert port["targetPort"] in {p["name"] for p in container["ports"]}
    assert made["Service"]["spec"]["sessionAffinity"] == "None"


def test_api_keys_are_mounted_only_when_wanted() -> None:
    open_pod = by_kind()["Deployment"]["spec"]["template"]["spec"]
    assert "auth" not in {v["name"] for v in open_pod["volumes"]}
    closed = by_kind(gateway={"auth": {"secretRef": {"name": "keys"}}, "port": 8080})
    pod = closed["Deployment"]["spec"]["template"]["spec"]
    assert {"name": "auth", "secret": {"secretName": "keys"}} in pod["volumes"]
    assert "--auth-dir" in pod["containers"][0]["args"]
    assert closed["Service"]["spec"]["ports"][0]["port"] == 8080
    assert url(parsed(gateway={"port": 8080})) == "http://shop-gateway.default.svc:8080"


# --- routes ------------------------------------------------------------------------------------

GROUP = RouteGroup(
    0,
    "r",
    (
        RouteInstance("p", "prefill", "http://a:1", 4),
        RouteInstance("d", "decode", "http://b:1", 4),
    ),
)
DOMAIN = RoCEDomain.parse(
    yaml.safe_load("""
apiVersion: pdserve.io/v1alpha1
kind: RoCEDomain
metadata: {name: az1}
spec:
  nodeSelector: {matchLabels: {a: b}}
  levels: [{name: leaf, nodeLabel: fabric/leaf, hopCost: 10}]
""")
)


def table(last: RouteTable | None, groups: Any = (GROUP,)) -> RouteTable:
    return route_table(parsed(scenarios=("search", "chat")), DOMAIN, {"chat": groups}, {}, last)


def test_the_route_version_rises_only_with_the_content() -> None:
    first = table(None)
    assert first.version == 1
    assert table(first) is not None
    assert table(first) == first
    changed = table(first, ())
    assert changed.version == 2
    assert table(changed).version == 3


def test_the_route_table_holds_rules_in_order_of_priority() -> None:
    made = table(None)
    assert [s.name for s in made.scenarios] == ["search", "chat"]
    assert made.scenarios[0].headers == {"x-scenario": "search"}
    assert made.scenarios[0].slo.ttft == 0.8
    assert made.scenarios[0].slo.attainment == 0.99
    assert made.tier_costs == {"leaf": 10}
    assert made.scenarios[0].groups == ()
    assert routed_instances(made, "chat") == {"p", "d"}
    assert routed_instances(made, "search") == frozenset()
    assert routed_instances(None, "chat") == frozenset()


def test_the_tightest_bound_on_prompts_is_routed_and_kept() -> None:
    wide = dataclasses.replace(GROUP.instances[0], id="wide")
    groups = (GROUP, dataclasses.replace(GROUP, index=1, instances=(wide,)))
    links = {
        name: LinkReport(1, frozenset(), {}, max_prompt_bytes=size)
        for name, size in (("p", 70_000), ("wide", 90_000), ("d", 5), ("old", 0))
    }
    assert prompt_bytes_of(groups, links) == 70_000
    assert prompt_bytes_of(groups[1:], links) == 90_000
    assert prompt_bytes_of(groups, {}) == prompt_bytes_of((), links) == 0

    def told(said: int, last: RouteTable | None) -> RouteTable:
        return route_table(
            parsed(scenarios=("chat",)), None, {}, {}, last, prompt_bytes={"chat": said}
        )

    first = told(70_000, None)
    assert RouteTable.from_json(json.loads(json.dumps(first.to_json()))) == first
    assert first.scenarios[0].max_prompt_bytes == 70_000
    assert told(0, first) == first  # an operator that just started knows of no report
    assert told(90_000, first).scenarios[0].max_prompt_bytes == 90_000
    assert "maxPromptBytes" not in json.dumps(told(0, None).to_json())


def test_a_group_of_a_former_model_goes_on_under_its_names() -> None:
    def told(model: str, aliases: list[str], last: RouteTable | None, **known: Any) -> RouteTable:
        spec = service(model={"name": model})
        spec["spec"]["scenarios"][0]["match"] = {"models": aliases} if aliases else {}
        groups = [dataclasses.replace(GROUP, index=n, revision=r) for n, r in enumerate("ab")]
        return route_table(PDService.parse(spec), None, {"chat": groups}, {}, last, **known)

    def names_of(table: RouteTable) -> list[tuple[tuple[str, ...], str]]:
        (chat,) = table.scenarios
        what = [served(table, chat, g) for g in chat.groups]
        return [(w.names, w.model) for w in what]

    def models(a: str, b: str) -> dict[str, Any]:
        return {"models": {"chat": {"a": (a, "Reference"), "b": (b, "Reference")}}}

    # One model: the groups say nothing of their own.
    first = told("old", [], None, **models("old", "old"))
    assert "models" not in json.dumps(first.to_json()["scenarios"][0]["groups"])
    # Renamed: what runs goes on, whether its template is known or only the last table.
    for known in (models("old", "new"), {"models": {"chat": {"b": ("new", "Reference")}}}):
        renamed = told("new", [], first, **known)
        assert names_of(renamed) == [(("old",), "old"), (("new",), "new")]
        assert RouteTable.from_json(renamed.to_json()) == renamed
        # ... also when the operator is restarted meanwhile, and with a lost table.
        assert names_of(told("new", [], renamed, **known)) == names_of(renamed)
    assert names_of(told("new", [], None, **models("old", "new"))) == names_of(renamed)
    # Other names for clients: an alias of the same model holds for every group at once.
    alias = told("old", ["chat"], first, **models("old", "old"))
    assert names_of(alias) == [(("chat",), "old")] * 2
    # Model and alias at once: the old groups keep their alias.
    both = told("new", ["talk"], alias, **models("old", "new"))
    assert names_of(both) == [(("chat",), "old"), (("talk",), "new")]
    # The model behind an alias: both serve it.
    behind = told("new", ["chat"], alias, **models("old", "new"))
    assert names_of(behind) == [(("chat",), "old"), (("chat",), "new")]
    # A refused template: the service asks for another model, no group has it.
    refused = told("new", [], first, **models("old", "old"))
    assert names_of(refused) == [(("old",), "old")] * 2


@pytest.mark.parametrize(
    "config_map",
    [None, {}, {"data": {}}, {"data": {names.KEY_ROUTES: "{"}}, {"data": {names.KEY_ROUTES: "{}"}},
     {"data": None}],
)  # fmt: skip
def test_an_unreadable_route_table_is_none(config_map: Any) -> None:
    assert parse_routes(config_map) is None


def test_a_route_table_survives_its_config_map() -> None:
    made = table(None)
    text = json.dumps(made.to_json())
    assert parse_routes({"data": {names.KEY_ROUTES: text}}) == made


# --- ratio input -------------------------------------------------------------------------------

NPU = "huawei.com/Ascend910"


def test_the_budget_left_to_a_scenario_counts_what_the_others_want() -> None:
    made = parsed(
        scenarios=("search", "chat"), devices=4, budget=[{"resource": NPU, "devices": 64}]
    )
    [left] = budget_for(made, "chat", {"search": Counts(2, 2, 1)})
    assert left.devices == 64 - 2 * 3 * 4
    [left] = budget_for(made, "chat", {})
    assert left.devices == 64 - 8, "a scenario without counts is taken at its minimum"


def test_first_counts_stay_inside_bounds_and_say_why() -> None:
    sizing = first_counts(
        parsed(prefill=(2, 4)), parsed(prefill=(2, 4)).spec.scenarios[0], {}, None
    )
    assert sizing.counts == Counts(1, 2, 1)
    assert "lower bounds" in sizing.message


def test_attainment_keeps_two_decimals_and_is_never_rounded_up() -> None:
    def percent(met: float, offered: float) -> float | None:
        from tests.support.ratio_values import sample, window

        return attainment_of(sample((window(met=met, offered=offered),))).percent

    assert percent(999.0, 1000.0) == 99.9
    assert percent(99_999.0, 100_000.0) == 99.99
    assert percent(100.0, 100.0) == 100.0


def test_attainment_is_unknown_rather_than_zero() -> None:
    assert attainment_of(Unknown("away")).percent is None
    from tests.support.ratio_values import sample, window

    assert attainment_of(sample((window(60.0, 2.0, 0.987),))).percent == 98.7
    assert attainment_of(sample((window(60.0, 0.0),))).percent is None
    half = dataclasses.replace(window(60.0, 2.0), met=Unknown("?"))
    assert attainment_of(sample((half,))).percent is None
