"""Templates by which their author would get more than a right to PDServices gives.

Put to the pure check (unit tests), and by PDService and ScenarioGroup to a real API server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Escape:
    """One of them."""

    name: str
    template: Json
    path: str
    """Of the first field that is refused, in the pod."""
    fields: tuple[str, ...]
    """What an administrator would have to allow."""


def _spec(name: str, spec: Json, path: str, *fields: str) -> Escape:
    return Escape(name, {"spec": spec}, path, fields or (path,))


def _engine(name: str, part: Json, below: str, field: str = "") -> Escape:
    spec = {"containers": [{"name": "engine", **part}]}
    return _spec(name, spec, f"spec.containers[engine].{below}",
                 f"spec.containers[*].{field or below}")  # fmt: skip


def _volume(name: str, source: Json, kind: str) -> Escape:
    spec = {"volumes": [{"name": "v", **source}]}
    return _spec(name, spec, f"spec.volumes[v].{kind}",
                 "spec.volumes[*]." + kind.replace("[0]", "[*]"))  # fmt: skip


ESCAPES = (
    _spec("host processes", {"hostPID": True}, "spec.hostPID"),
    _spec("host network", {"hostNetwork": True}, "spec.hostNetwork"),
    _spec("host IPC", {"hostIPC": True}, "spec.hostIPC"),
    _volume("the node's root", {"hostPath": {"path": "/"}}, "hostPath"),
    _spec("root", {"securityContext": {"runAsUser": 0, "runAsNonRoot": None}},
          "spec.securityContext.runAsUser", "spec.securityContext.runAsUser",
          "spec.containers[*].securityContext.runAsNonRoot"),
    _engine("root in the container", {"securityContext": {"runAsUser": 0}},
            "securityContext.runAsUser"),
    _engine("privileged", {"securityContext": {"privileged": True}},
            "securityContext.privileged"),
    _engine("a capability", {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}},
            "securityContext.capabilities.add"),
    _engine("capabilities kept", {"securityContext": {"capabilities": {"drop": ["KILL"]}}},
            "securityContext.capabilities.drop"),
    _engine("escalation", {"securityContext": {"allowPrivilegeEscalation": True}},
            "securityContext.allowPrivilegeEscalation"),
    _engine("raw /proc", {"securityContext": {"procMount": "Unmasked"}},
            "securityContext.procMount"),
    _spec("no seccomp", {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
          "spec.securityContext.seccompProfile.type"),
    _spec("SELinux", {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}},
          "spec.securityContext.seLinuxOptions.type"),
    _spec("a sysctl", {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
          "spec.securityContext.sysctls"),
    _engine("a port of the node", {"ports": [{"containerPort": 9999, "hostPort": 9999}]},
            "ports[2].hostPort", "ports[*].hostPort"),
    _engine("a probe elsewhere", {"livenessProbe": {"httpGet": {"host": "169.254.169.254"}}},
            "livenessProbe.httpGet.host"),
    _spec("AppArmor", {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
          "spec.securityContext.appArmorProfile.type"),
    Escape("AppArmor by annotation",
           {"metadata": {"annotations": {
               "container.apparmor.security.beta.kubernetes.io/engine": "unconfined"}}},
           "metadata.annotations[container.apparmor.security.beta.kubernetes.io/engine]",
           ("metadata.annotations[container.apparmor.security.beta.kubernetes.io/*]",)),
    _spec("another account", {"serviceAccountName": "admin"}, "spec.serviceAccountName"),
    _spec("another account, by its old name", {"serviceAccount": "admin"}, "spec.serviceAccount",
          "spec.serviceAccountName"),
    _spec("the account's token", {"automountServiceAccountToken": True},
          "spec.automountServiceAccountToken"),
    _spec("the account's token, by leaving it open", {"automountServiceAccountToken": None},
          "spec.automountServiceAccountToken"),
    _volume("a token by volume",
            {"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
            "projected.sources[0].serviceAccountToken"),
    _volume("a Secret by volume", {"secret": {"secretName": "payroll"}}, "secret"),
    _volume("a Secret by projection", {"projected": {"sources": [{"secret": {"name": "payroll"}}]}},
            "projected.sources[0].secret"),
    _engine("a Secret by variable",
            {"env": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "payroll",
                                                                  "key": "k"}}}]},
            "env[S].valueFrom.secretKeyRef", "env[*].valueFrom.secretKeyRef"),
    _engine("a Secret by variables", {"envFrom": [{"secretRef": {"name": "payroll"}}]},
            "envFrom[0].secretRef", "envFrom[*].secretRef"),
    _spec("a pull secret", {"imagePullSecrets": [{"name": "payroll"}]}, "spec.imagePullSecrets"),
    _volume("a CSI driver", {"csi": {"driver": "secrets-store.csi.k8s.io"}}, "csi"),
    _spec("an init container",
          {"initContainers": [{"name": "i", "image": "i",
                               "securityContext": {"privileged": True}}]},
          "spec.initContainers[i].securityContext.privileged",
          "spec.initContainers[*].securityContext.privileged"),
    _spec("a sidecar with a Secret",
          {"containers": [{"name": "s", "image": "s", "envFrom": [{"secretRef": {"name": "x"}}]}]},
          "spec.containers[s].envFrom[0].secretRef", "spec.containers[*].envFrom[*].secretRef"),
)  # fmt: skip
