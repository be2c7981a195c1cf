"""Rights used, from an API server's audit log, against rights granted, from its roles.

Works on the lines of any audit log of level Metadata or more, whatever cluster wrote it:

    found = compare(lines, account="system:serviceaccount:pdserve-system:pdserve-operator",
                    roles=roles_of(cluster.get, account))
    assert found.refused == [] and found.beyond == set() and found.unused == set()
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Json = dict[str, Any]
_RBAC = "rbac.authorization.k8s.io"
_ALLOWED_BY = re.compile(r"of (ClusterRole|Role) \"([^\"]+)\"")
_DISCOVERY = frozenset({"system:discovery", "system:public-info-viewer", "system:basic-user"})
"""What every user who is known to the API server may do."""


class Right(NamedTuple):
    """A verb on a kind; `resource` with its subresource, e.g. `pods/status`."""

    group: str
    resource: str
    verb: str


class Role(NamedTuple):
    """Of one binding: `namespace` is "" for a ClusterRole."""

    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}{'/' * bool(self.namespace)}{self.name}"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the API server noted it."""

    user: str
    right: Right | None
    """None: not about an object (discovery, health)."""
    namespace: str
    name: str
    """Also where a field selector asks for one name."""
    uri: str
    refused: bool
    """For want of rights. What admission does not like (quota, Pod Security) is not that."""
    role: tuple[str, str] | None
    """(kind, name) of the role that allowed it."""


@dataclass
class Comparison:
    """What differs; all empty where used and granted agree."""

    refused: list[str] = field(default_factory=list)
    """Requests that were not allowed."""
    unused: set[tuple[Role, Right]] = field(default_factory=set)
    """Granted, and not asked for."""
    beyond: set[tuple[str, Right]] = field(default_factory=set)
    """Asked for, and allowed by another role than those given."""
    used: int = 0
    """Different rights that were used."""
    requests: int = 0


def parse(lines: Iterable[str], account: str) -> Iterator[Request]:
    """The requests of one user, each once (a watch when it began)."""
    for line in lines:
        # A line that is being written has no end yet; most lines are of others.
        if account not in line or not line.endswith("}\n"):
            continue
        event = json.loads(line)
        watch_ended = event["verb"] == "watch" and event["stage"] == "ResponseComplete"
        begun = event.get("responseStatus", {}).get("code") == 200
        if event["user"]["username"] == account and not (watch_ended and begun):
            yield _request(event)


def _request(event: Json) -> Request:
    target = event.get("objectRef")
    right = None
    if target is not None:
        resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        right = Right(target.get("apiGroup", ""), resource, event["verb"])
    notes = event.get("annotations", {})
    allowed = _ALLOWED_BY.search(notes.get("authorization.k8s.io/reason", ""))
    code = event.get("responseStatus", {}).get("code", 0)
    # A role that grants more than its author holds is refused after authorization.
    grants_too_much = code == 403 and right is not None and right.group == _RBAC
    return Request(
        user=event["user"]["username"],
        right=right,
        namespace=(target or {}).get("namespace", ""),
        name=(target or {}).get("name", ""),
        uri=event["requestURI"],
        refused=notes.get("authorization.k8s.io/decision") != "allow" or grants_too_much,
        role=(allowed[1], allowed[2]) if allowed else None,
    )


def roles_of(
    get: Callable[[str], Json | None], account: str
) -> Mapping[Role, tuple[frozenset[Right], frozenset[str]]]:
    """Roles bound to an account by name, with their rights and the names these are limited to."""
    *_, namespace, name = account.split(":")
    api = "/apis/rbac.authorization.k8s.io/v1"
    found = {}
    for plural in ("rolebindings", "clusterrolebindings"):
        for binding in (get(f"{api}/{plural}") or {"items": []})["items"]:
            wanted = {"kind": "ServiceAccount", "namespace": namespace, "name": name}
            if wanted not in binding.get("subjects", ()):
                continue
            reference = binding["roleRef"]
            where = binding["metadata"].get("namespace", "")
            role = Role(
                reference["kind"], reference["name"], where if reference["kind"] == "Role" else ""
            )
            path = f"/namespaces/{where}/roles" if role.namespace else "/clusterroles"
            obj = get(f"{api}{path}/{role.name}")
            assert obj is not None, f"{role} is bound and not there"
            found[role] = _granted(obj)
    return found


def _granted(role: Json) -> tuple[frozenset[Right], frozenset[str]]:
    rights = frozenset(
        Right(group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )
    return rights, frozenset(n for rule in role["rules"] for n in rule.get("resourceNames", ()))


def compare(
    lines: Iterable[str],
    account: str,
    roles: Mapping[Role, tuple[frozenset[Right], frozenset[str]]],
    rare: Iterable[Right] = (),
) -> Comparison:
    """What `account` used of `roles`; `rare` rights need not be used."""
    found = Comparison()
    by_name = {(role.kind, role.name): role for role in roles}
    used: set[tuple[Role, Right]] = set()
    for request in parse(lines, account):
        found.requests += 1
        if request.refused:
            found.refused.append(f"{request.right or 'GET'} {request.uri}")
        elif request.right is not None and request.role is not None:
            role = by_name.get(request.role)
            if role is not None:
                used.add((role, request.right))
            elif request.role[1] not in _DISCOVERY:
                found.beyond.add(("/".join(request.role), request.right))
    granted = {(role, right) for role, (rights, _) in roles.items() for right in rights}
    forgiven = set(rare)
    found.unused = {pair for pair in granted - used if pair[1] not in forgiven}
    found.used = len(used)
    return found
