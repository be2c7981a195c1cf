"""K7.9: Prometheus behind a bearer token, a password or a CA of one's own, from mounted files."""

from __future__ import annotations

import base64
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pdserve.controllers.options import parse_options
from pdserve.engines import registry
from pdserve.ratio.types import Unknown
from pdserve.telemetry.access import MAX_SECRET, Access, AccessError
from pdserve.telemetry.prometheus import PrometheusSettings, PrometheusSource
from pdserve.telemetry.source import LiveInstances, ScenarioKey

KEY = ScenarioKey("ns", "shop", "chat")
SECRET = "s3cret-value"


@contextmanager
def prometheus(certificate: Path | None = None) -> Iterator[tuple[str, list[str | None]]]:
    """A server that answers every query with nothing, and what it was shown."""
    shown: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            shown.append(self.headers.get("Authorization"))
            kind = "vector"
            result = '[{"metric": {}, "value": [1.0, "1000"]}]' if "time%28" in self.path else "[]"
            body = '{"status": "success", "data": {"resultType": "%s", "result": %s}}'
            raw = (body % (kind, result)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_port}", shown
    finally:
        server.shutdown()
        server.server_close()


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for 127.0.0.1; its key lies beside it."""
    path = folder / f"{name}.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-subj", f"/CN={name}", "-days", "2", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", path.with_suffix(".key"), "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


def settings(url: str, access: Access) -> PrometheusSettings:
    made = PrometheusSettings(url, registry.series(), query_timeout=60, round_timeout=120)
    return replace(made, access=access, threads=1)


async def ask(source: PrometheusSource) -> str:
    """Why there is no sample ("" where the server answered)."""
    (found,) = (await source.sample({KEY: LiveInstances(frozenset())})).values()
    if isinstance(found, Unknown) and "http" in found.reason:
        return found.reason
    return ""


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


async def test_k7_9_a_bearer_token_is_shown_and_a_new_one_from_then_on(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with prometheus() as (url, shown):
        source = PrometheusSource(settings(url, Access(written(token, "one\n"))))
        assert await ask(source) == ""
        assert set(shown) == {"Bearer one"}
        shown.clear()
        token.write_text("two")
        assert await ask(source) == ""
        assert set(shown) == {"Bearer two"}
        await source.close()


async def test_k7_9_user_and_password_are_shown(tmp_path: Path) -> None:
    access = Access(None, written(tmp_path / "u", "me\n"), written(tmp_path / "p", "a:b"))
    with prometheus() as (url, shown):
        source = PrometheusSource(settings(url, access))
        assert await ask(source) == ""
        assert set(shown) == {"Basic " + base64.b64encode(b"me:a:b").decode()}
        await source.close()


async def test_k7_9_only_servers_of_the_ca_are_asked_and_a_new_ca_is_used(tmp_path: Path) -> None:
    one, two = certificate(tmp_path, "one"), certificate(tmp_path, "two")
    ca = tmp_path / "ca.crt"
    access = Access(written(tmp_path / "t", SECRET), ca_file=written(ca, two.read_text()))
    with prometheus(one) as (url, shown):
        source = PrometheusSource(settings(url, access))
        refused = await ask(source)
        assert "certificate" in refused.lower() and SECRET not in refused
        assert shown == []
        ca.write_text(one.read_text())
        assert await ask(source) == ""
        assert set(shown) == {f"Bearer {SECRET}"}
        shown.clear()
        ca.write_text(two.read_text())
        assert "certificate" in (await ask(source)).lower()
        assert shown == []
        await source.close()


BAD: list[tuple[str, bytes | None, str]] = [
    ("token_file", None, "No such file"),
    ("token_file", b"", "one line"),
    ("token_file", b"s3cret-value\nX-Added: 1", "one line"),
    ("token_file", b"\xff\xfe", "not UTF-8"),
    ("token_file", b"s" * (MAX_SECRET + 1), "more than"),
    ("ca_file", None, "No such file"),
    ("ca_file", b"s3cret-value", "no usable certificate"),
    ("ca_file", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no usable"),
]


@pytest.mark.parametrize(("name", "raw", "says"), BAD)
async def test_k7_9_a_bad_file_is_reported_and_mended_without_a_restart(
    name: str, raw: bytes | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if raw is not None:
        path.write_bytes(raw)
    with prometheus() as (url, shown):
        source = PrometheusSource(settings(url, Access(**{name: str(path)})))
        told = await ask(source)
        assert says in told and str(path) in told and SECRET not in told
        assert shown == [], "nothing is asked without what should be shown"
        good = "fine" if name == "token_file" else certificate(tmp_path, "good").read_text()
        path.write_text(good)
        assert await ask(source) == ""
        await source.close()


def test_k7_9_a_user_name_with_a_colon_is_refused(tmp_path: Path) -> None:
    access = Access(None, written(tmp_path / "u", "a:b"), written(tmp_path / "p", "x"))
    with pytest.raises(AccessError, match="':'"):
        access.read()


def test_k7_9_flags_name_the_files() -> None:
    options = parse_options(
        ["--prometheus-username-file=/u", "--prometheus-password-file=/p",
         "--prometheus-ca-file=/c"], {},
    )  # fmt: skip
    assert options.prometheus_access == Access(None, "/u", "/p", "/c")
    options = parse_options([], {"PDSERVE_PROMETHEUS_TOKEN_FILE": "/t"})
    assert options.prometheus_access == Access("/t")


@pytest.mark.parametrize(
    "flags",
    [
        ["--prometheus-username-file=/u"],
        ["--prometheus-token-file=/t", "--prometheus-username-file=/u",
         "--prometheus-password-file=/p"],
    ],
)  # fmt: skip
def test_k7_9_flags_that_contradict_each_other_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(flags, {})
