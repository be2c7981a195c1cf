"""The operator's flags. Every flag can also be given as an environment variable.

`--control-period` is also `PDSERVE_CONTROL_PERIOD`, and so on; a flag wins over its variable.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdserve.engines.pod_profile import Allowed, Rights
from pdserve.http1.listen import EVERYWHERE
from pdserve.kube.connect import DEFAULT_BURST, DEFAULT_RATE
from pdserve.telemetry.access import Access
from pdserve.wire import names

ENV_PREFIX = "PDSERVE_"


@dataclass(frozen=True, slots=True)
class OperatorOptions:
    """Settings of one operator process; times in seconds."""

    namespace: str | None
    """Where PDServices and ScenarioGroups are looked after; None: everywhere."""
    kubeconfig: str | None
    api_rate: float
    """Requests per second to the API server, on average."""
    api_burst: int
    """Requests to it at once."""
    prometheus_url: str | None
    """None: no ratio loop; Auto then keeps the counts it has and says why."""
    prometheus_access: Access
    control_period: float
    fast_period: float
    metrics_window: float
    gateway_image: str
    model_cache: str
    """Directory of the nodes that keeps downloaded weights; empty: none."""
    model_cache_namespaces: frozenset[str]
    """Whose instances use it; none: all."""
    bind: str
    metrics_port: int
    workers: int
    resync: float
    lease_name: str
    lease_namespace: str
    claim_namespace: str
    """Where operators of all namespaces say whose the objects are."""
    leader_election: bool
    decisions_log: str | None
    log_format: str
    log_level: str
    rights: Rights
    """What pod templates may ask for beyond the restricted Pod Security profile."""


class _Parser(argparse.ArgumentParser):
    """Adds `PDSERVE_...` as the default of every option."""

    def __init__(self, env: Mapping[str, str]) -> None:
        super().__init__(
            prog="pdserve-operator",
            description="Reconciles PDServices, ScenarioGroups and RoCEDomains.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        self._env = env

    def setting(self, flag: str, default: str | None, text: str, **kind: object) -> None:
        """Declare `flag`, with the environment before `default`."""
        variable = ENV_PREFIX + flag.strip("-").replace("-", "_").upper()
        value = self._env.get(variable) or default
        # argparse converts string defaults with `type`, so bad variables are reported like flags.
        self.add_argument(flag, default=value, help=f"{text} (${variable})", **kind)  # type: ignore[arg-type]  # kind is passed through


def parse_options(
    argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None
) -> OperatorOptions:
    """Read flags and environment; a bad value ends the process with usage and status 2."""
    given = os.environ if env is None else env
    parser = _Parser(given)
    _declare(parser, given)
    args = parser.parse_args(argv)
    if (args.prometheus_username_file is None) != (args.prometheus_password_file is None):
        parser.error("--prometheus-username-file and --prometheus-password-file go together")
    if args.prometheus_username_file and args.prometheus_token_file:
        parser.error("--prometheus-token-file excludes --prometheus-username-file")
    return _options(args)


def _declare(parser: _Parser, given: Mapping[str, str]) -> None:
    add = parser.setting
    add("--namespace", None, "look after this namespace only; empty: all")
    add("--kubeconfig", None, "kubeconfig file; empty: in-cluster, $KUBECONFIG or ~/.kube/config")
    add(
        "--api-rate", str(DEFAULT_RATE), "requests per second to the API server, on average",
        type=_rate,
    )  # fmt: skip
    add("--api-burst", str(DEFAULT_BURST), "requests to it at once", type=_burst)
    add("--prometheus-url", None, "Prometheus that the ratio loop asks; empty: no ratio loop")
    add("--prometheus-token-file", None, "file with the bearer token for Prometheus")
    add("--prometheus-username-file", None, "file with the user name for Prometheus")
    add("--prometheus-password-file", None, "file with the password of that user")
    add("--prometheus-ca-file", None, "file with the CA bundle that Prometheus is trusted by")
    add("--control-period", "60", "unit of the ratio loop's times, seconds", type=_positive)
    add("--fast-period", "5", "seconds between ratio decisions", type=_positive)
    add("--metrics-window", "60", "shortest window of the ratio loop, seconds", type=_positive)
    add("--gateway-image", "pdserve/gateway:latest", "image of the gateways")
    add(
        "--model-cache", "", "directory of the nodes that keeps downloaded weights, writable for "
        "every user; empty: each pod downloads its own", type=_directory,
    )  # fmt: skip
    add(
        "--model-cache-namespaces", "", "namespaces whose instances use that directory, separated "
        "by commas; empty: all", type=_names,
    )  # fmt: skip
    add("--bind", EVERYWHERE, "address of the metrics and health server")
    add("--metrics-port", str(names.PORT_METRICS), "its port", type=_port)
    add("--workers", "4", "objects of one namespace reconciled at once", type=_count)
    add("--resync", "600", "seconds between looking at everything again", type=_positive)
    add("--lease-name", "pdserve-operator", "Lease of the leader election")
    add("--lease-namespace", "pdserve-system", "namespace of that Lease")
    add(
        "--claim-namespace",
        "kube-system",
        "where operators of all namespaces say whose the objects are; the same for all of them",
    )
    add("--decisions-log", None, "file to which every ratio decision is appended as a JSON line")
    add("--log-format", "text", "json or text", choices=("json", "text"))
    add("--log-level", "info", "least severe level", choices=("debug", "info", "warning", "error"))
    add(
        "--allowed-pod-fields", "", "what templates may ask for beyond the restricted Pod Security "
        "profile: [NAMESPACE:]FIELD[=VALUE], separated by commas", type=_allowed,
    )  # fmt: skip
    parser.add_argument(
        "--authors-checked",
        action="store_true",
        default=_truth(given.get(ENV_PREFIX + "AUTHORS_CHECKED", "")),
        help="the chart's ValidatingAdmissionPolicy is installed: it checks that authors may use "
        f"the Secrets and service accounts that they name (${ENV_PREFIX}AUTHORS_CHECKED)",
    )
    parser.add_argument(
        "--no-leader-election",
        action="store_true",
        default=_truth(given.get(ENV_PREFIX + "NO_LEADER_ELECTION", "")),
        help=f"act at once; only with a single operator (${ENV_PREFIX}NO_LEADER_ELECTION)",
    )


def _options(args: argparse.Namespace) -> OperatorOptions:
    return OperatorOptions(
        namespace=args.namespace or None,
        kubeconfig=args.kubeconfig or None,
        api_rate=args.api_rate,
        api_burst=args.api_burst,
        prometheus_url=args.prometheus_url or None,
        prometheus_access=Access(
            args.prometheus_token_file,
            args.prometheus_username_file,
            args.prometheus_password_file,
            args.prometheus_ca_file,
        ),
        control_period=args.control_period,
        fast_period=args.fast_period,
        metrics_window=args.metrics_window,
        gateway_image=args.gateway_image,
        model_cache=args.model_cache,
        model_cache_namespaces=args.model_cache_namespaces,
        bind=args.bind,
        metrics_port=args.metrics_port,
        workers=args.workers,
        resync=args.resync,
        lease_name=args.lease_name,
        lease_namespace=args.lease_namespace,
        claim_namespace=args.claim_namespace,
        leader_election=not args.no_leader_election,
        decisions_log=args.decisions_log or None,
        log_format=args.log_format,
        log_level=args.log_level,
        rights=Rights(args.allowed_pod_fields, args.authors_checked),
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a positive number of seconds")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"{text}: must be from 0.1 to 100000 requests per second")
    return value


def _burst(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"{text}: must be from 1 to 100000 requests")
    return value


def _allowed(text: str) -> tuple[Allowed, ...]:
    try:
        return tuple(Allowed.parse(entry.strip()) for entry in text.split(",") if entry.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _directory(text: str) -> str:
    if text and (not text.startswith("/") or ".." in text.split("/") or text.strip("/") == ""):
        raise argparse.ArgumentTypeError(f"{text}: must be an absolute path below /, without ..")
    return text.rstrip("/")


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 256:
        raise argparse.ArgumentTypeError(f"{text}: must be from 1 to 256")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text}: must be a port from 0 to 65535")
    return value


def _truth(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on")
