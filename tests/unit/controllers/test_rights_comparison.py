"""The comparison of rights used and granted finds what it is made to find."""

from __future__ import annotations

import json
from typing import Any

from tests.support.audit import Right, Role, compare, parse, roles_of

ACCOUNT = "system:serviceaccount:system:operator"
MINE = Role("ClusterRole", "mine")
GET, LIST, WATCH = (Right("", "pods", verb) for verb in ("get", "list", "watch"))
STATUS = Right("", "pods/status", "patch")


def line(right: Right, **over: Any) -> str:
    """One line as kube-apiserver 1.36 writes it, less what is not read."""
    resource, _, subresource = right.resource.partition("/")
    target = {"resource": resource, "namespace": "shop", "name": "a", "apiVersion": "v1"}
    if right.group:
        target["apiGroup"] = right.group
    if subresource:
        target["subresource"] = subresource
    binding = 'RBAC: allowed by ClusterRoleBinding "b" of ClusterRole "{}" to ServiceAccount "x"'
    event = {
        "stage": "ResponseComplete",
        "requestURI": f"/api/v1/{right.resource}",
        "verb": right.verb,
        "user": {"username": over.get("user", ACCOUNT)},
        "objectRef": target,
        "responseStatus": {"code": over.get("code", 200)},
        "annotations": {
            "authorization.k8s.io/decision": over.get("decision", "allow"),
            "authorization.k8s.io/reason": binding.format(over.get("role", MINE.name)),
        },
    }
    return json.dumps(event | over.get("event", {})) + "\n"


def granted(*rights: Right) -> dict[Role, tuple[frozenset[Right], frozenset[str]]]:
    return {MINE: (frozenset(rights), frozenset())}


def test_used_and_granted_agree() -> None:
    found = compare([line(GET), line(GET), line(STATUS)], ACCOUNT, granted(GET, STATUS))
    assert (found.refused, found.unused, found.beyond) == ([], set(), set())
    assert (found.requests, found.used) == (3, 2)


def test_what_nothing_used_is_named_unless_it_is_rare() -> None:
    assert compare([line(GET)], ACCOUNT, granted(GET, LIST)).unused == {(MINE, LIST)}
    assert compare([line(GET)], ACCOUNT, granted(GET, LIST), rare=[LIST]).unused == set()


def test_what_was_refused_is_named() -> None:
    refused = line(LIST, decision="forbid", code=403)
    (said,) = compare([line(GET), refused], ACCOUNT, granted(GET)).refused
    assert "list" in said
    assert "/api/v1/pods" in said


def test_a_role_that_grants_too_much_counts_as_refused_and_admission_does_not() -> None:
    role = Right("rbac.authorization.k8s.io", "roles", "create")
    lines = [line(role, code=403), line(Right("", "pods", "create"), code=403)]
    found = compare(lines, ACCOUNT, granted())
    assert len(found.refused) == 1
    assert "roles" in found.refused[0]


def test_what_another_role_allowed_is_named() -> None:
    found = compare([line(GET, role="theirs")], ACCOUNT, granted(GET))
    assert found.beyond == {("ClusterRole/theirs", GET)}
    assert found.unused == {(MINE, GET)}


def test_every_user_may_use_discovery() -> None:
    nothing = {"event": {"objectRef": None}}
    lines = [line(GET), line(GET, role="system:discovery", **nothing)]
    found = compare(lines, ACCOUNT, granted(GET))
    assert (found.refused, found.beyond) == ([], set())


def test_a_watch_counts_once_and_others_and_half_lines_do_not() -> None:
    lines = [
        line(WATCH, event={"stage": "ResponseStarted"}),
        line(WATCH),
        line(GET, user="system:serviceaccount:system:other"),
        line(GET)[:-10],
    ]
    assert [r.right for r in parse(lines, ACCOUNT)] == [WATCH]


def test_roles_are_found_by_their_bindings() -> None:
    subject = {"kind": "ServiceAccount", "namespace": "system", "name": "operator"}
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}
    api = "/apis/rbac.authorization.k8s.io/v1"
    site: dict[str, Any] = {
        f"{api}/clusterrolebindings": {
            "items": [
                {"metadata": {}, "subjects": [subject],
                 "roleRef": {"kind": "ClusterRole", "name": "mine"}},
                {"metadata": {}, "subjects": [{**subject, "name": "other"}],
                 "roleRef": {"kind": "ClusterRole", "name": "theirs"}},
                {"metadata": {}, "roleRef": {"kind": "ClusterRole", "name": "unbound"}},
            ]
        },
        f"{api}/rolebindings": {
            "items": [
                {"metadata": {"namespace": "shop"}, "subjects": [subject],
                 "roleRef": {"kind": "Role", "name": "one"}},
            ]
        },
        f"{api}/clusterroles/mine": {"rules": [rule]},
        f"{api}/namespaces/shop/roles/one": {"rules": [{**rule, "resourceNames": ["x"]}]},
    }  # fmt: skip
    assert roles_of(site.get, ACCOUNT) == {
        MINE: (frozenset({GET, LIST}), frozenset()),
        Role("Role", "one", "shop"): (frozenset({GET, LIST}), frozenset({"x"})),
    }
