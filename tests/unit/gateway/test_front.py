"""The clients' port as `spec.gateway` wants it: HTTPS, CORS, metrics elsewhere (K7.2)."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from tests.support import certificates
from tests.support.gateway_rig import Rig

from pdserve.gateway.front import Certificate, Cors, Front, body_bytes, read_front
from pdserve.gateway.process import run


def pair(directory: Path, certificate: str, key: str) -> tuple[Path, Path]:
    files = directory / "tls.crt", directory / "tls.key"
    for path, text in zip(files, (certificate, key), strict=True):
        path.write_text(text)
    return files


async def get(
    port: int, path: str, tls: ssl.SSLContext | None = None, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes, bytes]:
    """Status, headers, body, and the server's certificate."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close"]
    lines += [f"{k.replace('_', '-')}: {v}" for k, v in headers.items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    shown = writer.get_extra_info("ssl_object")
    raw = await reader.read()
    writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    named = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in rest)}
    return int(first.split()[1]), named, body, shown.getpeercert(True) if shown else b""


def trusting(text: str) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=text)


async def test_https_and_a_certificate_renewed_in_place(tmp_path: Path) -> None:
    rig = Rig()
    files = pair(tmp_path, certificates.ONE, certificates.ONE_KEY)
    certificate = Certificate(*files)
    await rig.start(front=Front(certificate))
    try:
        status, _, _, shown = await get(rig.port, "/healthz", trusting(certificates.ONE))
        assert status == 200
        assert shown == ssl.PEM_cert_to_DER_cert(certificates.ONE)
        pair(tmp_path, certificates.TWO, certificates.ONE_KEY)
        certificate.refresh()
        assert (await get(rig.port, "/healthz", trusting(certificates.ONE)))[0] == 200, (
            "a key that does not belong to it changes nothing"
        )
        pair(tmp_path, certificates.TWO, certificates.TWO_KEY)
        certificate.refresh()
        _, _, _, shown = await get(rig.port, "/healthz", trusting(certificates.TWO))
        assert shown == ssl.PEM_cert_to_DER_cert(certificates.TWO)
    finally:
        await rig.close()


async def test_over_https_a_refusal_before_the_body_is_read_arrives_whole(tmp_path: Path) -> None:
    """TLS cannot close one direction alone."""
    rig, keys = Rig(), tmp_path / "keys"
    keys.mkdir()
    (keys / "team").write_text("secret\n")
    certificate = Certificate(*pair(tmp_path, certificates.ONE, certificates.ONE_KEY))
    await rig.start(keys, front=Front(certificate))
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", rig.port, ssl=trusting(certificates.ONE)
        )
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n"
        writer.write(head.encode() + b"x" * 1000)
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), 60)
        assert answer.startswith(b"HTTP/1.1 401")
        writer.close()
        assert (await get(rig.port, "/healthz", trusting(certificates.ONE)))[0] == 200
    finally:
        await rig.close()


async def test_a_browsers_question_before_the_request_needs_no_key(tmp_path: Path) -> None:
    rig = Rig()
    (tmp_path / "team").write_text("secret\n")
    await rig.start(tmp_path, front=Front(cors=Cors(frozenset({PAGE}))))
    try:
        status, headers, _, _ = await get(
            rig.port, "/v1/chat/completions", method="OPTIONS", origin=PAGE,
            access_control_request_method="POST",
        )  # fmt: skip
        assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
        assert (await get(rig.port, "/v1/models", origin=PAGE))[0] == 401
    finally:
        await rig.close()


async def test_metrics_have_a_port_of_their_own_and_leave_the_clients() -> None:
    rig = Rig()
    await rig.start(front=Front(metrics_port=0))
    try:
        own = rig.gateway.metrics_port
        status, _, body, _ = await get(own, "/metrics")
        assert status == 200
        assert b"# TYPE pdserve_gateway_offered_total counter" in body
        assert (await get(own, "/v1/models"))[0] == 404
        assert (await get(rig.port, "/metrics"))[0] == 404
    finally:
        await rig.close()


async def test_without_one_they_are_where_old_operators_look() -> None:
    rig = Rig()
    await rig.start()
    try:
        assert (await get(rig.port, "/metrics"))[0] == 200
    finally:
        await rig.close()


PAGE = "https://chat.example.com"


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ({PAGE}, PAGE, PAGE),
        ({PAGE}, "https://other.example.com", None),
        ({"*"}, "https://other.example.com", "*"),
        (set(), PAGE, None),
    ],
    ids=["named", "another", "all", "none"],
)
async def test_a_browser_learns_which_pages_may_call(
    origins: set[str], origin: str, allowed: str | None
) -> None:
    rig = Rig()
    await rig.start(front=Front(cors=Cors(frozenset(origins))))
    try:
        status, headers, _, _ = await get(rig.port, "/healthz", origin=origin)
        assert status == 200
        assert headers.get("access-control-allow-origin") == allowed
        status, headers, _, _ = await get(
            rig.port, "/v1/chat/completions", method="OPTIONS", origin=origin,
            access_control_request_method="POST",
            access_control_request_headers="authorization,content-type",
        )  # fmt: skip
        assert headers.get("access-control-allow-origin") == allowed
        assert status == (200 if origins else 405)
        if origins:
            assert headers["access-control-allow-headers"] == "authorization,content-type"
            assert "POST" in headers["access-control-allow-methods"]
    finally:
        await rig.close()


def test_the_environment(tmp_path: Path) -> None:
    files = pair(tmp_path, certificates.ONE, certificates.ONE_KEY)
    env = {
        "PDSERVE_TLS_CERT": str(files[0]), "PDSERVE_TLS_KEY": str(files[1]),
        "PDSERVE_METRICS_PORT": "9090", "PDSERVE_CORS_ORIGINS": f"{PAGE}, *",
        "PDSERVE_MAX_BODY_BYTES": "1024",
    }  # fmt: skip
    front = read_front(env)
    assert front.certificate is not None
    assert (front.metrics_port, front.cors.origins) == (9090, {PAGE, "*"})
    assert body_bytes(env, 1) == 1024
    assert read_front({}) == Front()
    assert body_bytes({}, 7) == 7


@pytest.mark.parametrize(
    "env",
    [
        {"PDSERVE_METRICS_PORT": "70000"},
        {"PDSERVE_METRICS_PORT": "x"},
        {"PDSERVE_MAX_BODY_BYTES": "4MiB"},
        {"PDSERVE_MAX_BODY_BYTES": "0"},
        {"PDSERVE_TLS_CERT": "/nonexistent"},
        {"PDSERVE_TLS_CERT": "/nonexistent", "PDSERVE_TLS_KEY": "/nonexistent"},
    ],
    ids=str,
)
def test_a_wrong_variable_ends_the_process_by_its_name(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert run(["--routes", "file:/nonexistent"]) == 2
    assert next(iter(env)) in capsys.readouterr().err
