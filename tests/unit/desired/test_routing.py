"""Route tables: versions, order of rules, bounds on prompts, former models."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import yaml
from tests.support.desired_objects import parsed

from pdserve.api import PDService, RoCEDomain
from pdserve.desired.routing import (
    ContextBounds,
    bounds_of,
    gateways_of,
    parse_routes,
    route_table,
    routed_instances,
)
from pdserve.dst.world_service import service
from pdserve.terms.limits import UsageLimits
from pdserve.topology import PodView, pod_view
from pdserve.wire import names
from pdserve.wire.links import LinkReport
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteTable, served

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


def test_one_instance_that_reports_nonsense_bounds_no_request() -> None:
    """A prefill that says that no prompt fits would else have gateways refuse all of them."""
    prefills = tuple(dataclasses.replace(GROUP.instances[0], id=f"p{n}") for n in range(3))
    groups = (dataclasses.replace(GROUP, instances=prefills),)

    def bounds(*said: int) -> tuple[int, int]:
        links = {
            p.id: LinkReport(1, frozenset(), {}, max_prompt_bytes=size, max_model_len=size // 10)
            for p, size in zip(prefills, said, strict=False)
        }
        return bounds_of(groups, links)

    assert bounds(70_000, 1, 70_000) == (70_000, 7000)
    assert bounds(1 << 40, 70_000, 70_000) == (70_000, 7000)
    assert bounds(1, 70_000) == (70_000, 7000)
    assert bounds(70_000, 0, 0) == (70_000, 7000), "old engines do not say it"


def test_the_tightest_bounds_are_routed_and_kept() -> None:
    wide = dataclasses.replace(GROUP.instances[0], id="wide")
    groups = (GROUP, dataclasses.replace(GROUP, index=1, revision="r2", instances=(wide,)))
    links = {
        name: LinkReport(1, frozenset(), {}, max_prompt_bytes=size, max_model_len=tokens)
        for name, size, tokens in (
            ("p", 70_000, 9000), ("wide", 90_000, 9500), ("d", 5, 8000), ("old", 0, 0)
        )
    }  # fmt: skip
    assert bounds_of(groups, links) == (70_000, 8000)
    assert bounds_of(groups[1:], links) == (90_000, 9500)
    assert bounds_of(groups, {}) == bounds_of((), links) == ContextBounds()

    def told(last: RouteTable | None, *said: int) -> RouteTable:
        bounds = {"chat": ContextBounds(*said)}
        return route_table(parsed(scenarios=("chat",)), None, {}, {}, last, bounds=bounds)

    first = told(None, 70_000, 8000)
    assert RouteTable.from_json(json.loads(json.dumps(first.to_json()))) == first
    assert (first.scenarios[0].max_prompt_bytes, first.scenarios[0].max_model_len) == (70_000, 8000)
    assert told(first) == first  # an operator that just started has no report yet
    assert told(first, 90_000).scenarios[0].max_prompt_bytes == 90_000
    assert told(first, 90_000).scenarios[0].max_model_len == 8000
    assert told(first, 0, 4000).scenarios[0].max_model_len == 4000
    assert "max" not in json.dumps(told(None).to_json())


def test_prefixes_count_unless_a_scenario_says_otherwise() -> None:
    spec = service()
    assert "routing" not in spec["spec"]["scenarios"][0]
    usual = route_table(PDService.parse(spec), None, {}, {}, None)
    assert all(s.prefix_affinity for s in usual.scenarios)
    assert RouteTable.from_json(json.loads(json.dumps(usual.to_json()))) == usual
    spec["spec"]["scenarios"][0]["routing"] = {"prefixAffinity": "Off"}
    off = route_table(PDService.parse(spec), None, {}, {}, usual)
    assert next(s.prefix_affinity for s in off.scenarios) is False
    assert off.version == usual.version + 1
    assert RouteTable.from_json(off.to_json()) == off


@pytest.mark.parametrize("value", ["off", "On", "", "auto"])
def test_a_word_of_another_version_for_prefixes_is_off(value: str) -> None:
    told = route_table(PDService.parse(service()), None, {}, {}, None).to_json()
    for scenario in told["scenarios"]:
        del scenario["prefixAffinity"]
    older = RouteTable.from_json(told)
    assert not any(s.prefix_affinity for s in older.scenarios)
    for scenario in told["scenarios"]:
        scenario["prefixAffinity"] = value
    assert RouteTable.from_json(told) == older


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (None, ("Off", 0)),
        ({"mode": "Off"}, ("Off", 0)),
        ({"mode": "Auto"}, ("Auto", 0)),
        ({"mode": "Auto", "maxTokens": 64}, ("Auto", 0)),
        ({"mode": "Fixed", "maxTokens": 64}, ("Fixed", 64)),
    ],
)
def test_a_scenario_says_which_prompts_decodes_compute(
    given: dict[str, Any] | None, want: tuple[str, int]
) -> None:
    spec = service()
    usual = route_table(PDService.parse(spec), None, {}, {}, None)
    assert "localPrefill" not in json.dumps(usual.to_json()), "gateways of before see no change"
    if given is not None:
        spec["spec"]["scenarios"][0]["routing"] = {"localPrefill": given}
    told = route_table(PDService.parse(spec), None, {}, {}, usual)
    found = told.scenarios[0]
    assert (found.local_prefill, found.local_prefill_tokens) == want
    assert (told == usual) == (want == ("Off", 0))
    assert RouteTable.from_json(json.loads(json.dumps(told.to_json()))) == told


@pytest.mark.parametrize("value", ["auto", "On", "", "Always"])
def test_a_word_of_another_version_for_local_prefills_is_off(value: str) -> None:
    told = route_table(PDService.parse(service()), None, {}, {}, None)
    written = told.to_json()
    for scenario in written["scenarios"]:
        scenario["localPrefill"] = value
    assert RouteTable.from_json(written) == told


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


def test_limits_are_in_the_table_where_there_are_some() -> None:
    spec = service()
    usual = route_table(PDService.parse(spec), None, {}, {}, None)
    assert "limits" not in json.dumps(usual.to_json())
    spec["spec"]["scenarios"][0]["limits"] = {"tokensPerMinute": 5000, "concurrentRequests": 3}
    limited = route_table(PDService.parse(spec), None, {}, {}, usual)
    assert limited.scenarios[0].limits == UsageLimits(0, 5000, 3)
    assert limited.version == usual.version + 1
    assert RouteTable.from_json(json.loads(json.dumps(limited.to_json()))) == limited


def test_gateways_are_named_the_oldest_first_where_there_are_several() -> None:
    def pod(name: str, created: str, **status: Any) -> PodView:
        ready = {"type": "Ready", "status": status.pop("ready", "True")}
        return pod_view({
            "metadata": {"name": name, "namespace": "n", "creationTimestamp": created},
            "status": {"podIP": "10.0.0.1", "conditions": [ready], **status},
        })  # fmt: skip

    pods = [
        pod("new", "2026-01-03T00:00:00Z"),
        pod("b", "2026-01-02T00:00:00Z", podIP="fd00::1"),
        pod("a", "2026-01-02T00:00:00Z"),
        pod("unready", "2026-01-01T00:00:00Z", ready="False"),
        pod("nowhere", "2026-01-01T00:00:00Z", podIP=""),
    ]
    several, one = parsed(gateway={"replicas": 2}), parsed(gateway={"replicas": 1})
    assert gateways_of(one, pods) == ()
    named = gateways_of(several, pods)
    assert [(g.id, g.endpoint) for g in named] == [
        ("a", "http://10.0.0.1:9090"), ("b", "http://[fd00::1]:9090"),
        ("new", "http://10.0.0.1:9090"),
    ]  # fmt: skip
    table = route_table(several, None, {}, {}, None, gateways=named)
    assert RouteTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert route_table(several, None, {}, {}, table, gateways=named) is table
    assert "gateways" not in route_table(one, None, {}, {}, None).to_json()


def test_the_most_that_a_decode_should_run_reaches_gateways_and_stays_where_it_is_unknown() -> None:
    group = {"chat": (GROUP,)}
    made = route_table(parsed(), DOMAIN, group, {}, None, batches={"chat": 3})
    assert [s.decode_batch for s in made.scenarios] == [3]
    again = RouteTable.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    unlimited = route_table(parsed(), DOMAIN, group, {}, made)
    assert unlimited.version == made.version + 1
    assert "decodeBatch" not in json.dumps(unlimited.to_json())
