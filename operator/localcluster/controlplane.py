"""Runs a real Kubernetes control plane as ordinary processes on loopback.

Neighbours: `binaries` finds the programs, `credentials` makes keys and tokens, `processes` makes
the children end with this process. Nodes are not part of it: see `localcluster.agent`.

The API server listens on one free port of 127.0.0.1; etcd only on a socket inside the state
directory, which only its owner may enter. The controllers for Endpoints and EndpointSlices stay
off when pods have loopback addresses, because those objects refuse such addresses.
"""

from __future__ import annotations

import enum
import functools
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localcluster import binaries, processes
from localcluster.credentials import (
    User,
    ec_private_key_pem,
    kubeconfig,
    new_user,
    token_file,
    write_private,
)
from localcluster.errors import LocalError, Progress, log_tail, quiet

LOOPBACK = "127.0.0.1"
SERVICE_CIDR = "10.96.0.0/16"

_PORT_ATTEMPTS = 3
_POLL_SECONDS = 0.05
"""How often a component that starts is asked whether it answers."""


class Components(enum.Enum):
    """Which parts run. API: etcd and kube-apiserver. FULL: also controllers and scheduler."""

    API = "api"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class ControlPlaneSettings:
    """What differs between clusters; times in seconds."""

    node_grace: float = 50.0
    """Silence after which a Node is NotReady (Kubernetes' default)."""
    node_check: float = 5.0
    """How often node silence is looked at."""
    start_timeout: float = 90.0
    verbosity: int = 1
    audit: bool = False
    """Note every request of service accounts in `AUDIT_LOG`, one JSON object a line."""


AUDIT_LOG = "logs/audit.log"
AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts"]}
- {level: None}
"""
"""Who asked what, and what came of it: what a comparison of rights used and granted needs."""


class ControlPlane:
    """One control plane in one state directory. `start` and `stop` block; not thread-safe."""

    def __init__(
        self,
        state_dir: Path,
        *,
        components: Components = Components.FULL,
        settings: ControlPlaneSettings | None = None,
        name: str = "pdserve",
    ) -> None:
        self.state_dir = state_dir
        self.components = components
        self.settings = settings or ControlPlaneSettings()
        self.name = name
        self.admin = new_user("admin", "system:masters")
        self._controllers = new_user("system:kube-controller-manager")
        self._scheduler = new_user("system:kube-scheduler")
        self._port = 0
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def server(self) -> str:
        """URL of the API server; only after `start`."""
        return f"https://{LOOPBACK}:{self._port}"

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator."""
        return self.state_dir / "kubeconfig"

    @property
    def ca_file(self) -> Path:
        """Certificate that clients verify the API server by."""
        return self.state_dir / "pki" / "apiserver.crt"

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each running component."""
        return {name: child.pid for name, child in self._children.items()}

    def start(self, progress: Progress = quiet) -> None:
        """Start everything and return once it serves.

        Raises:
            LocalError: a component ended or did not answer in time; nothing is left running.
        """
        api_only = self.components is Components.API
        programs = binaries.API_PROGRAMS if api_only else binaries.ALL_PROGRAMS
        found = binaries.kube(progress, programs)
        began = time.monotonic()
        self._prepare()
        try:
            self._start_etcd(found)
            self.start_api_server(found)
            if not api_only:
                self._start_controllers(found)
        except BaseException:
            self.stop()
            raise
        took = time.monotonic() - began
        progress(f"control plane ready in {took:.1f} s at {self.server} ({found.source})")

    def stop(self) -> None:
        """End all components, controllers first; idempotent. Logs and data stay on disk."""
        for name in reversed(tuple(self._children)):
            # Nothing of a local cluster outlives it, so etcd needs no time to save anything.
            processes.stop(self._children.pop(name), grace=3.0)

    def failed(self) -> str | None:
        """Describes a component that ended by itself, with the end of its log, or None."""
        for name, child in self._children.items():
            if child.poll() is not None:
                return self._ended(name, child)
        return None

    def _prepare(self) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.state_dir.chmod(0o700)
        for old in ("etcd", "pki"):
            shutil.rmtree(self.state_dir / old, ignore_errors=True)
        (self.state_dir / "logs").mkdir(exist_ok=True)
        (self.state_dir / "audit-policy.yaml").write_text(AUDIT_POLICY, encoding="utf-8")
        write_private(self.state_dir / "service-account.key", ec_private_key_pem())
        users = [self.admin, self._controllers, self._scheduler]
        write_private(self.state_dir / "tokens.csv", token_file(users))

    def _start_etcd(self, found: binaries.KubeBinaries) -> None:
        # Relative socket names: an absolute path may exceed the 107 bytes a socket allows.
        nowhere = "http://localhost:1"
        self._spawn(
            "etcd",
            [
                str(found.path("etcd")),
                "--data-dir=etcd",
                "--listen-client-urls=unix://etcd.sock",
                f"--advertise-client-urls={nowhere}",
                "--listen-peer-urls=unix://etcd-peer.sock",
                f"--initial-advertise-peer-urls={nowhere}",
                f"--initial-cluster=default={nowhere}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
        )
        socket_file = self.state_dir / "etcd.sock"
        self._wait("etcd", socket_file.is_socket)

    def start_api_server(self, found: binaries.KubeBinaries) -> None:
        """Start the API server at a port that is free, and return once it serves.

        After a loss of the last one too: `server` and `kubeconfig` say where the new one is.

        Raises:
            LocalError: it ended or did not answer in time.
        """
        log = self._log("kube-apiserver")
        for attempt in range(_PORT_ATTEMPTS):
            self._port = free_port()
            self._spawn("kube-apiserver", self._api_server_argv(found))
            try:
                self._wait("kube-apiserver", self._api_ready)
                break
            except LocalError:
                taken = "address already in use" in log_tail(log, 50)
                if not taken or attempt + 1 == _PORT_ATTEMPTS:
                    raise
                del self._children["kube-apiserver"]
        write_private(self.kubeconfig, self._kubeconfig_of(self.admin))

    def _api_server_argv(self, found: binaries.KubeBinaries) -> list[str]:
        argv = [
            str(found.path("kube-apiserver")),
            "--etcd-servers=unix:etcd.sock",
            f"--bind-address={LOOPBACK}",
            f"--advertise-address={LOOPBACK}",
            f"--secure-port={self._port}",
            "--cert-dir=pki",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=service-account.key",
            "--service-account-signing-key-file=service-account.key",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--endpoint-reconciler-type=none",
            "--kubelet-preferred-address-types=InternalIP",
            "--profiling=false",
            f"--v={self.settings.verbosity}",
        ]
        if self.components is Components.API:
            # No controller makes the service accounts that this plugin insists on.
            argv.append("--disable-admission-plugins=ServiceAccount")
        if self.settings.audit:
            argv += ["--audit-policy-file=audit-policy.yaml", f"--audit-log-path={AUDIT_LOG}"]
        return argv

    def _start_controllers(self, found: binaries.KubeBinaries) -> None:
        manager, scheduler = "kube-controller-manager", "kube-scheduler"
        for name, user in ((manager, self._controllers), (scheduler, self._scheduler)):
            write_private(self.state_dir / f"{name}.kubeconfig", self._kubeconfig_of(user))
        off = (
            "endpoints-controller",
            "endpointslice-controller",
            "endpointslice-mirroring-controller",
        )
        common = [
            "--leader-elect=false",
            f"--bind-address={LOOPBACK}",
            "--profiling=false",
            f"--v={self.settings.verbosity}",
        ]
        ports = {name: free_port() for name in (manager, scheduler)}
        self._spawn(
            manager,
            [
                str(found.path(manager)),
                f"--kubeconfig={manager}.kubeconfig",
                f"--controllers=*,{','.join(f'-{c}' for c in off)}",
                "--service-account-private-key-file=service-account.key",
                "--use-service-account-credentials=true",
                "--root-ca-file=pki/apiserver.crt",
                f"--node-monitor-grace-period={self.settings.node_grace:g}s",
                f"--node-monitor-period={self.settings.node_check:g}s",
                f"--cert-dir=pki/{manager}",
                f"--secure-port={ports[manager]}",
                *common,
            ],
        )
        self._spawn(
            scheduler,
            [
                str(found.path(scheduler)),
                f"--kubeconfig={scheduler}.kubeconfig",
                f"--cert-dir=pki/{scheduler}",
                f"--secure-port={ports[scheduler]}",
                *common,
            ],
        )
        for name, port in ports.items():
            self._wait(name, functools.partial(_healthy, port))
        self._wait(manager, self._default_service_account)

    def _kubeconfig_of(self, user: User) -> str:
        return kubeconfig(self.server, self.ca_file.read_bytes(), user, self.name)

    def _api_ready(self) -> bool:
        return self._get("/readyz")

    def _default_service_account(self) -> bool:
        return self._get("/api/v1/namespaces/default/serviceaccounts/default")

    def _get(self, path: str) -> bool:
        if not self.ca_file.is_file():
            return False
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file))
        except ssl.SSLError:
            return False  # the certificate is still being written
        return _answers_ok(
            self.server + path, context, {"Authorization": f"Bearer {self.admin.token}"}
        )

    def _spawn(self, name: str, argv: list[str]) -> None:
        self._children[name] = processes.spawn(argv, log=self._log(name), cwd=self.state_dir)

    def _log(self, name: str) -> Path:
        return self.state_dir / "logs" / f"{name}.log"

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = processes.Deadline(self.settings.start_timeout)
        child = self._children[name]
        while not ready():
            if child.poll() is not None:
                raise LocalError(self._ended(name, child))
            if deadline.passed:
                raise LocalError(
                    f"{name} did not answer within {self.settings.start_timeout:g} s; end of "
                    f"{self._log(name)}:\n{log_tail(self._log(name))}"
                )
            time.sleep(_POLL_SECONDS)  # a port that opens announces nothing

    def _ended(self, name: str, child: subprocess.Popen[bytes]) -> str:
        how = f"exit {child.returncode}"
        if child.returncode < 0:
            how = f"killed by signal {-child.returncode}"
            if child.returncode == -9:
                how += ", perhaps for memory"
        log = self._log(name)
        return f"{name} ended ({how}); end of {log}:\n{log_tail(log)}"


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which no process listens now.

    Another may take it before its use.
    """
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _healthy(port: int) -> bool:
    """/healthz of our own child on loopback, whose certificate it made itself a moment ago."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _answers_ok(f"https://{LOOPBACK}:{port}/healthz", context, {})


def _answers_ok(url: str, context: ssl.SSLContext, headers: dict[str, str]) -> bool:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - always https, loopback
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(request, timeout=2.0) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
