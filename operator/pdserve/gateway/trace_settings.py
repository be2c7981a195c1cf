"""Where traces go, by the variables of the OpenTelemetry specification.

    OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT   without either: no traces
    OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_TRACES_HEADERS     name=value, with commas
    OTEL_EXPORTER_OTLP_TIMEOUT                                        milliseconds, 10000
    OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG                      parentbased_always_on, 1
    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES                       pdserve-gateway
    OTEL_SDK_DISABLED=true, OTEL_TRACES_EXPORTER=none                 no traces
    OTEL_EXPORTER_OTLP_PROTOCOL                                       http/protobuf alone

Neighbours: `process` reads them, `tracing` follows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from pdserve.gateway.trace_context import Sampler

SERVICE_NAME = "pdserve-gateway"
TRACES = "/v1/traces"
_OTLP = "OTEL_EXPORTER_OTLP_"


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Where traces go and which are recorded."""

    url: str
    """OTLP/HTTP, http or https."""
    sampler: Sampler
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 10.0
    """Seconds for one export."""
    resource: Mapping[str, str] = field(default_factory=lambda: {"service.name": SERVICE_NAME})
    """Attributes of this process."""


def read_tracing(env: Mapping[str, str]) -> TraceSettings | None:
    """Read the environment; None: no traces.

    Raises:
        ValueError: a variable is wrong; the message names it.
    """
    url = _endpoint(env)
    exporter = env.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if url is None or exporter == "none" or env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if exporter != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER: {exporter!r:.100} is none of otlp, none")
    protocol = _of_traces(env, "PROTOCOL") or "http/protobuf"
    if protocol != "http/protobuf":
        raise ValueError(f"{_OTLP}PROTOCOL: {protocol!r:.100}: only http/protobuf is spoken here")
    name = env.get("OTEL_TRACES_SAMPLER", "").strip() or "parentbased_always_on"
    resource = _pairs(env.get("OTEL_RESOURCE_ATTRIBUTES", ""), "OTEL_RESOURCE_ATTRIBUTES")
    resource.setdefault("service.name", SERVICE_NAME)
    if given := env.get("OTEL_SERVICE_NAME"):
        resource["service.name"] = given
    if pod := env.get("PDSERVE_POD_NAME"):
        resource.setdefault("service.instance.id", pod)
    return TraceSettings(
        url, Sampler(name, _share(env)), _pairs(_of_traces(env, "HEADERS"), f"{_OTLP}HEADERS"),
        _timeout(env), resource,
    )  # fmt: skip


def _endpoint(env: Mapping[str, str]) -> str | None:
    whole, base = env.get(f"{_OTLP}TRACES_ENDPOINT"), env.get(f"{_OTLP}ENDPOINT")
    url = whole or (base.rstrip("/") + TRACES if base else None)
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if "@" in url.partition("://")[2].partition("/")[0]:
        # It would stand in the log, and not be sent.
        raise ValueError(f"{_OTLP}ENDPOINT: no user or password here: use {_OTLP}HEADERS")
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(
            f"{_OTLP}ENDPOINT: want a URL such as http://collector:4318, got {url!r:.200}"
        )
    return url


def _of_traces(env: Mapping[str, str], name: str) -> str:
    return (env.get(f"{_OTLP}TRACES_{name}") or env.get(f"{_OTLP}{name}", "")).strip()


def _pairs(text: str, variable: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = pair.partition("=")
        name, value = unquote(name.strip()), unquote(value.strip())
        if not equals or not name or not (name + value).isprintable():
            got = "" if variable.endswith("HEADERS") else f", got {pair!r:.100}"  # may be a secret
            raise ValueError(f"{variable}: want name=value with commas between{got}")
        found[name] = value
    return found


def _share(env: Mapping[str, str]) -> float:
    text = env.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1"
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"OTEL_TRACES_SAMPLER_ARG: want a number of 0 to 1, got {text!r:.100}")
    return share


def _timeout(env: Mapping[str, str]) -> float:
    text = _of_traces(env, "TIMEOUT") or "10000"
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:10]) <= 600_000):
        raise ValueError(f"{_OTLP}TIMEOUT: want milliseconds of 1 to 600000, got {text!r:.100}")
    return int(text[:10]) / 1000.0
