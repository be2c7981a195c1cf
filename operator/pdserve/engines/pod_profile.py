"""Fields of a pod that its author needs a right for: what `template` may not ask for by itself.

Two classes of fields:

- profile: whatever the Pod Security profile `restricted` forbids (Kubernetes, "Pod Security
  Standards"), e.g. `spec.hostPID`. Only an administrator's allow list permits them.
- names: whatever lends the pod another owner's identity or data: a Secret, a service account, an
  inline CSI volume. Where the chart's ValidatingAdmissionPolicy is installed, the API server has
  asked whether the author may use them; elsewhere the allow list decides on them too.

`findings` reads a pod as it is sent to the API server, so a merge cannot hide anything from it.
Values that the API server cannot decode are left to it. Pure. Neighbours: `pods_template` asks
for findings after it merged a template, `desired.templates` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pdserve.terms.json import JsonMap

Class = Literal["profile", "names"]

_SAFE_SYSCTLS = frozenset((
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
))  # fmt: skip
_SAFE_VOLUMES = frozenset((
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
))  # fmt: skip
_SELINUX_TYPES = frozenset(
    ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
)
_PROFILES = frozenset(("RuntimeDefault", "Localhost"))
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HOOKS = ("postStart", "preStop")
_CONTAINERS = ("containers", "initContainers")

_SECURITY = (
    "runAsNonRoot", "runAsUser", "seccompProfile.type", "appArmorProfile.type",
    "seLinuxOptions.type", "seLinuxOptions.user", "seLinuxOptions.role",
    "windowsOptions.hostProcess",
)  # fmt: skip
_OF_CONTAINER = (
    *(f"securityContext.{field}" for field in _SECURITY),
    "securityContext.privileged", "securityContext.procMount",
    "securityContext.allowPrivilegeEscalation", "securityContext.capabilities.add",
    "securityContext.capabilities.drop", "ports[*].hostPort",
    *(f"{probe}.{kind}.host" for probe in _PROBES for kind in ("httpGet", "tcpSocket")),
    *(f"lifecycle.{hook}.{kind}.host" for hook in _HOOKS for kind in ("httpGet", "tcpSocket")),
)  # fmt: skip
_SECRET_ENV = ("env[*].valueFrom.secretKeyRef", "envFrom[*].secretRef")

FIELDS: Final[Mapping[str, Class]] = {
    **dict.fromkeys(("spec.hostNetwork", "spec.hostPID", "spec.hostIPC"), "profile"),
    **{f"spec.securityContext.{field}": "profile" for field in _SECURITY},
    "spec.securityContext.sysctls": "profile",
    "spec.volumes[*].hostPath": "profile",
    "spec.volumes[*].image": "profile",
    "spec.volumes[*].nfs": "profile",
    "spec.volumes[*].other": "profile",
    f"metadata.annotations[{_APPARMOR}*]": "profile",
    **{f"spec.{kind}[*].{field}": "profile" for kind in _CONTAINERS for field in _OF_CONTAINER},
    "spec.serviceAccountName": "names",
    "spec.automountServiceAccountToken": "names",
    "spec.imagePullSecrets": "names",
    "spec.volumes[*].secret": "names",
    "spec.volumes[*].csi": "names",
    "spec.volumes[*].projected.sources[*].secret": "names",
    "spec.volumes[*].projected.sources[*].serviceAccountToken": "names",
    "spec.volumes[*].projected.sources[*].podCertificate": "names",
    **{f"spec.{kind}[*].{field}": "names" for kind in _CONTAINERS for field in _SECRET_ENV},
}
"""Every field that an entry of the allow list can name, and its class."""

TOKEN_FIELD: Final = f"spec.containers[*].{_SECRET_ENV[0]}"
"""How an engine is given its service's token."""
SECRET_VOLUME_FIELD: Final = "spec.volumes[*].secret"  # noqa: S105 - the name of a field
"""How a download of weights is given its credentials."""
_VALUE_LIMIT = 253


@dataclass(frozen=True, slots=True)
class Finding:
    """One field of a pod that needs a right."""

    field: str
    """Its name in `FIELDS`."""
    path: str
    """Where it is, containers and volumes by name: `spec.containers[engine].ports[0].hostPort`."""
    value: str
    """What it asks for: the path of a hostPath, the name of a Secret; "" when it is missing."""
    right: str
    """What would be accepted, for people."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """One entry of an administrator's allow list: `[NAMESPACE:]FIELD[=VALUE]`."""

    field: str
    value: str | None = None
    """None: any value."""
    namespace: str | None = None
    """None: every namespace."""

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """Read one entry of the allow list.

        Raises:
            ValueError: it is malformed; the message says what would be right.
        """
        match = re.fullmatch(r"(?:([a-z0-9]([a-z0-9-]*[a-z0-9])?):)?([^=:]+)(?:=(.*))?", text)
        if match is None:
            raise ValueError(f"{text!r}: must be [NAMESPACE:]FIELD[=VALUE]")
        namespace, _, field, value = match.groups()
        if field not in FIELDS:
            known = ", ".join(sorted(FIELDS))
            raise ValueError(f"{text!r}: no such field: {field}; known: {known}")
        return cls(field, value, namespace)

    def permits(self, finding: Finding, namespace: str) -> bool:
        """Whether this entry permits the finding in a pod of `namespace`."""
        return (
            self.field == finding.field
            and self.value in (None, finding.value)
            and self.namespace in (None, namespace)
        )


@dataclass(frozen=True, slots=True)
class Rights:
    """What templates may ask for beyond the restricted profile. The default is: nothing."""

    allowed: tuple[Allowed, ...] = ()
    """The administrator's allow list."""
    authors_checked: bool = False
    """The chart's ValidatingAdmissionPolicy is installed: the API server checked that authors may
    use the Secrets and service accounts that they name."""

    def refused(self, pod: JsonMap, namespace: str, own: Iterable[Finding] = ()) -> Finding | None:
        """The first finding that nothing permits, or None. `own` are the operator's findings."""
        # By their place too: a second volume with a directory of the operator's is the author's.
        known = {(f.field, f.path, f.value) for f in own}
        for finding in findings(pod):
            mine = (finding.field, finding.path, finding.value) in known
            if not mine and not self.permits(finding, namespace):
                return finding
        return None

    def permits(self, finding: Finding, namespace: str) -> bool:
        """Whether a pod of `namespace` may have this field."""
        if FIELDS[finding.field] == "names" and self.authors_checked:
            return True
        return any(entry.permits(finding, namespace) for entry in self.allowed)


def findings(pod: JsonMap) -> tuple[Finding, ...]:
    """Every field of a pod manifest (or of a pod template) that needs a right.

    Order: metadata, pod, volumes, containers, init containers.
    """
    spec = _map(pod.get("spec"))
    return (
        *_annotations(_map(pod.get("metadata"))),
        *_pod(spec),
        *(f for at, volume in _named(spec, "volumes", "spec") for f in _volume(at, volume)),
        *(
            f
            for kind in _CONTAINERS
            for at, container in _named(spec, kind, "spec")
            for f in _container(kind, at, container, _map(spec.get("securityContext")))
        ),
    )


def _annotations(metadata: JsonMap) -> Iterator[Finding]:
    for key, value in _map(metadata.get("annotations")).items():
        if str(key).startswith(_APPARMOR) and not _confined(value):
            yield Finding(
                f"metadata.annotations[{_APPARMOR}*]", f"metadata.annotations[{key}]",
                _text(value), "must be runtime/default or localhost/PROFILE",
            )  # fmt: skip


def _confined(value: object) -> bool:
    return isinstance(value, str) and (
        value in ("", "runtime/default") or value.startswith("localhost/")
    )


def _pod(spec: JsonMap) -> Iterator[Finding]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key) not in (None, False):
            yield _same(f"spec.{key}", spec[key], "must be false")
    context = _map(spec.get("securityContext"))
    yield from _security("spec.securityContext", "spec.securityContext", context)
    if context.get("runAsNonRoot") not in (None, True):
        yield _same("spec.securityContext.runAsNonRoot", context["runAsNonRoot"], "must be true")
    for sysctl in _list(context.get("sysctls")):
        name = _map(sysctl).get("name")
        if name not in _SAFE_SYSCTLS:
            yield _same("spec.securityContext.sysctls", name, "only safe sysctls")
    # `serviceAccount` is the deprecated alias that the API server copies.
    for key in ("serviceAccountName", "serviceAccount"):
        if spec.get(key) not in (None, ""):
            yield Finding("spec.serviceAccountName", f"spec.{key}", _text(spec[key]), "none")
    if spec.get("automountServiceAccountToken") is not False:
        value = spec.get("automountServiceAccountToken")
        yield _same("spec.automountServiceAccountToken", value, "must be false")
    for secret in _list(spec.get("imagePullSecrets")):
        yield _same("spec.imagePullSecrets", _map(secret).get("name"), "spec.engine has them")


def _volume(at: str, volume: JsonMap) -> Iterator[Finding]:
    for kind in sorted(set(volume) - {"name"}):
        source = volume[kind]
        if source is None:
            continue
        known = f"spec.volumes[*].{kind}"
        if kind not in _SAFE_VOLUMES:
            what = _map(source)
            value = what.get("path") if kind in ("hostPath", "nfs") else what.get("reference")
            field = known if known in FIELDS else "spec.volumes[*].other"
            yield Finding(
                field, f"{at}.{kind}", _text(value if field == known else kind),
                f"must be one of {', '.join(sorted(_SAFE_VOLUMES))}",
            )  # fmt: skip
        elif kind == "secret":
            yield Finding(known, f"{at}.secret", _text(_map(source).get("secretName")), _SECRETS)
        elif kind == "csi":
            driver = _text(_map(source).get("driver"))
            yield Finding(known, f"{at}.csi", driver, "use a PersistentVolumeClaim")
        elif kind == "projected":
            yield from _projected(f"{at}.projected", _list(_map(source).get("sources")))


_SECRETS = "no Secret of others"


def _projected(at: str, sources: list[object]) -> Iterator[Finding]:
    for index, source in enumerate(sources):
        for kind, value in _map(source).items():
            field = f"spec.volumes[*].projected.sources[*].{kind}"
            if field in FIELDS and value is not None:
                name = _text(_map(value).get("name"))
                yield Finding(field, f"{at}.sources[{index}].{kind}", name, _SECRETS)


def _container(kind: str, at: str, container: JsonMap, pod: JsonMap) -> Iterator[Finding]:
    field = f"spec.{kind}[*]"
    context = _map(container.get("securityContext"))
    yield from _security(f"{field}.securityContext", f"{at}.securityContext", context)
    yield from _hardened(f"{field}.securityContext", f"{at}.securityContext", context, pod)
    for index, port in enumerate(_list(container.get("ports"))):
        host_port = _map(port).get("hostPort")
        if host_port not in (None, 0):
            yield Finding(
                f"{field}.ports[*].hostPort", f"{at}.ports[{index}].hostPort", _text(host_port),
                "must be left out",
            )  # fmt: skip
    yield from _hosts(field, at, container)
    for index, entry in enumerate(_list(container.get("env"))):
        ref = _map(_map(entry).get("valueFrom")).get("secretKeyRef")
        if ref is not None:
            path = f"{at}.env[{_map(entry).get('name', index)}].valueFrom.secretKeyRef"
            name = _text(_map(ref).get("name"))
            yield Finding(f"{field}.{_SECRET_ENV[0]}", path, name, _SECRETS)
    for index, entry in enumerate(_list(container.get("envFrom"))):
        ref = _map(entry).get("secretRef")
        if ref is not None:
            path, name = f"{at}.envFrom[{index}].secretRef", _text(_map(ref).get("name"))
            yield Finding(f"{field}.{_SECRET_ENV[1]}", path, name, _SECRETS)


def _hardened(field: str, at: str, context: JsonMap, pod: JsonMap) -> Iterator[Finding]:
    """What a container must say, itself or by its pod."""
    capabilities = _map(context.get("capabilities"))
    rules: tuple[tuple[str, object, bool, str], ...] = (
        ("privileged", context.get("privileged"), False, "must be false"),
        ("allowPrivilegeEscalation", context.get("allowPrivilegeEscalation"), True,
         "must be false"),
    )  # fmt: skip
    for key, value, needed, right in rules:
        if value is not False and (needed or value is not None):
            yield Finding(f"{field}.{key}", f"{at}.{key}", _text(value), right)
    if context.get("procMount") not in (None, "", "Default"):
        yield _below(field, at, "procMount", context["procMount"], "must be Default")
    if "ALL" not in _list(capabilities.get("drop")):
        yield _below(field, at, "capabilities.drop", "", "must hold ALL")
    for added in _list(capabilities.get("add")):
        if added != "NET_BIND_SERVICE":
            yield _below(field, at, "capabilities.add", added, "only NET_BIND_SERVICE")
    own = context.get("runAsNonRoot")
    # The pod's own `false` is the pod's finding.
    if own not in (None, True) or (own is None and pod.get("runAsNonRoot") is None):
        yield _below(field, at, "runAsNonRoot", own, "must be true, here or for the pod")
    if not _map(context.get("seccompProfile")) and not _map(pod.get("seccompProfile")):
        right = "must be RuntimeDefault or Localhost, here or for the pod"
        yield _below(field, at, "seccompProfile.type", None, right)


def _security(field: str, at: str, context: JsonMap) -> Iterator[Finding]:
    """What pod and container say alike."""
    seccomp, armor = _map(context.get("seccompProfile")), _map(context.get("appArmorProfile"))
    selinux = _map(context.get("seLinuxOptions"))
    windows = _map(context.get("windowsOptions"))
    # `0 == False`: a user id is compared as a number, and anything else is no user id.
    user = context.get("runAsUser")
    if user is not None and (type(user) is not int or user <= 0):
        yield _below(field, at, "runAsUser", user, "must not be 0")
    checks: tuple[tuple[str, object, Callable[[object], bool], str], ...] = (
        ("seccompProfile.type", seccomp.get("type", None if not seccomp else ""),
         _PROFILES.__contains__, "must be RuntimeDefault or Localhost"),
        ("appArmorProfile.type", armor.get("type"), _PROFILES.__contains__,
         "must be RuntimeDefault or Localhost"),
        ("seLinuxOptions.type", selinux.get("type"), _SELINUX_TYPES.__contains__,
         "must be a type of containers"),
        ("seLinuxOptions.user", selinux.get("user"), "".__eq__, "must be left out"),
        ("seLinuxOptions.role", selinux.get("role"), "".__eq__, "must be left out"),
        ("windowsOptions.hostProcess", windows.get("hostProcess"), False.__eq__, "must be false"),
    )  # fmt: skip
    for key, value, fits, right in checks:
        if value is not None and (not isinstance(value, str | bool) or fits(value) is not True):
            yield _below(field, at, key, value, right)


def _hosts(field: str, at: str, container: JsonMap) -> Iterator[Finding]:
    """Probes and hooks ask the pod, not a host of their author's choice."""
    lifecycle = _map(container.get("lifecycle"))
    handlers = {
        **{probe: _map(container.get(probe)) for probe in _PROBES},
        **{f"lifecycle.{hook}": _map(lifecycle.get(hook)) for hook in _HOOKS},
    }
    for name, handler in handlers.items():
        for kind in ("httpGet", "tcpSocket"):
            host = _map(handler.get(kind)).get("host")
            if host not in (None, ""):
                yield _below(field, at, f"{name}.{kind}.host", host, "must be left out")


# --- small parts -----------------------------------------------------------------------------


def _same(field: str, value: object, right: str) -> Finding:
    return Finding(field, field, _text(value), right)


def _below(field: str, at: str, key: str, value: object, right: str) -> Finding:
    return Finding(f"{field}.{key}", f"{at}.{key}", _text(value), right)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)[:_VALUE_LIMIT]


def _map(value: object) -> JsonMap:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _named(spec: JsonMap, key: str, prefix: str) -> Iterator[tuple[str, JsonMap]]:
    for index, entry in enumerate(_list(spec.get(key))):
        item = _map(entry)
        yield f"{prefix}.{key}[{item.get('name', index)}]", item
