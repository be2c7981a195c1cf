"""Variables of the OpenTelemetry specification: which are read, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pdserve.gateway.process import run
from pdserve.gateway.trace_context import Sampler, TraceContext
from pdserve.gateway.trace_settings import read_tracing

BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}


@pytest.mark.parametrize(
    "env",
    [{}, {"OTEL_SERVICE_NAME": "x"}, {**BASE, "OTEL_SDK_DISABLED": "true"},
     {**BASE, "OTEL_TRACES_EXPORTER": "none"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}],
)  # fmt: skip
def test_without_a_collector_nothing_is_traced(env: dict[str, str]) -> None:
    assert read_tracing(env) is None


def test_what_is_said_for_traces_goes_before_what_is_said_for_all() -> None:
    all_ = read_tracing(BASE)
    assert all_ is not None
    assert (all_.url, all_.timeout, all_.headers) == ("http://collector:4318/v1/traces", 10.0, {})
    traces = read_tracing({
        **BASE, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://other/x?y=1",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=b", "OTEL_EXPORTER_OTLP_TRACES_HEADERS":
        "authorization=Basic%20eA==, b=c", "OTEL_EXPORTER_OTLP_TIMEOUT": "250",
        "OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "service.name=no,k=v%2C",
        "PDSERVE_POD_NAME": "shop-0",
    })  # fmt: skip
    assert traces is not None
    assert traces.url == "https://other/x?y=1"
    assert traces.headers == {"authorization": "Basic eA==", "b": "c"}
    assert traces.timeout == 0.25
    assert traces.resource == {"service.name": "shop", "k": "v,", "service.instance.id": "shop-0"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:s3cret@collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://s3cret@collector:99999"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Bearer s3cret"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=s3cret%0d"),
    ],
)
def test_what_may_be_a_secret_is_not_shown(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"OTEL_EXPORTER_OTLP_\w+: ") as raised:
        read_tracing({**BASE, name: value})
    assert "s3cret" not in str(raised.value)


BAD = (
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:99999"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:0"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c/\r\nx: y"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c c"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%0d%0ax: y"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "=b"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "-5"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "9" * 50),
    ("OTEL_TRACES_EXPORTER", "zipkin"),
    ("OTEL_TRACES_SAMPLER", "always"),
    ("OTEL_TRACES_SAMPLER", "parentbased_jaeger_remote"),
    ("OTEL_TRACES_SAMPLER_ARG", "1.1"),
    ("OTEL_TRACES_SAMPLER_ARG", "-0.1"),
    ("OTEL_TRACES_SAMPLER_ARG", "nan"),
    ("OTEL_TRACES_SAMPLER_ARG", "half"),
    ("OTEL_RESOURCE_ATTRIBUTES", "k"),
)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_wrong_variable_is_named_and_ends_the_process(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=name):
        read_tracing({**BASE, name: value})
    for key, text in {**BASE, name: value}.items():
        monkeypatch.setenv(key, text)
    assert run(["--routes", "file:/none"]) == 2
    assert name in capsys.readouterr().err


PARENT = {flag: TraceContext(b"t" * 16, b"s" * 8, flag) for flag in (True, False)}


@pytest.mark.parametrize(
    ("name", "alone", "sampled", "unsampled"),
    [("always_on", True, True, True), ("always_off", False, False, False),
     ("parentbased_always_on", True, True, False), ("parentbased_always_off", False, True, False)],
)  # fmt: skip
def test_samplers(name: str, alone: bool, sampled: bool, unsampled: bool) -> None:
    sampler = Sampler(name, 1.0).keeps
    trace = b"t" * 16
    found = (sampler(trace, None), sampler(trace, PARENT[True]), sampler(trace, PARENT[False]))
    assert found == (alone, sampled, unsampled)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_ratio_is_by_the_trace_and_the_same_in_all_processes(share: float) -> None:
    names = ("traceidratio", "parentbased_traceidratio")
    plain, parent = (Sampler(name, share).keeps for name in names)
    ids = [bytes(8) + (n * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8) for n in range(10_000)]
    kept = [plain(i, None) for i in ids]
    assert sum(kept) == pytest.approx(share * len(ids), abs=100)
    assert [parent(i, None) for i in ids] == kept
    assert all(parent(i, PARENT[True]) and not parent(i, PARENT[False]) for i in ids[:10])


def test_a_process_without_traces_loads_nothing_for_them() -> None:
    check = (
        "import sys, pdserve.gateway.process\n"
        "found = [m for m in sys.modules if m.startswith(('google', 'opentelemetry'))]\n"
        "sys.exit(str(found) if found else 0)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)
