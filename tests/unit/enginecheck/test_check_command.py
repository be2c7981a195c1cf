"""`pdserve engine check` as a command: the reference engine, and hostile servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.engines import TOKEN, Client, EngineProcess, until

from pdserve.cli.main import main
from pdserve.enginecheck import suite
from pdserve.enginecheck.probe import MAX_REPLY
from pdserve.wire.calls import PATH_INFO

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[list[EngineProcess]]:
    made = [EngineProcess(r, ("--slots", "2"), log=tmp_path / r) for r in ("prefill", "decode")]
    client = Client()
    try:
        for engine in made:
            engine.start()
        for engine in made:
            await until(lambda e=engine: client.up(e), f"{engine.name} is up")  # type: ignore[misc]
        yield made
    finally:
        for engine in made:
            engine.kill()
        await client.close()


async def check(*arguments: str) -> int:
    """The exit status."""
    return await asyncio.to_thread(main, ["engine", "check", *arguments])


async def test_the_reference_engine_keeps_every_rule(
    engines: list[EngineProcess], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PDSERVE_TOKEN", TOKEN)
    urls = [engine.url for engine in engines]
    status = await check(*urls, "-o", "json", "--body", '{"ignore_eos": true}')
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [r for r in report["results"] if r["outcome"] == "fail"] == []
    assert status == 0
    assert report["kept"] is True
    assert (report["type"], report["model"]) == ("Reference", "reference")
    assert {i["url"] for i in report["instances"]} == set(urls)
    assert {r["name"] for r in report["results"]} == set(suite.NAMES)
    skipped = {r["name"] for r in report["results"] if r["outcome"] == "skip"}
    assert skipped <= {"abort-prefill"}
    # Progress: a line as each result comes.
    assert len(err.splitlines()) == len(report["results"]) + 1


async def test_an_engine_of_another_group_is_left_alone(
    engines: list[EngineProcess], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PDSERVE_TOKEN", TOKEN)
    prefill, decode = (engine.url for engine in engines)
    assert await check(prefill, decode, "--no-drain") == 0
    assert await check(prefill, "--no-drain") == 1
    said = capsys.readouterr().out
    assert "another group" in said and "--take-over" in said
    assert await check(prefill, "--take-over") == 0


async def test_a_wrong_token_is_reported(
    engines: list[EngineProcess], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PDSERVE_TOKEN", "another")
    assert await check(engines[0].url) == 1
    assert "is the token right?" in capsys.readouterr().out


SILENT = b""
ENDLESS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n"
)
REDIRECT = b"HTTP/1.1 302 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Hostile:
    """Answers every request with the same bytes; `/pdserve/v1/info` rightly, where asked to."""

    def __init__(self, raw: bytes, *, endless: bool = False, info: bool = True) -> None:
        self.raw, self.endless, self.info = raw, endless, info
        self.sent = self.port = 0

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if self.info and PATH_INFO.encode() in head:
                writer.write(whole(b'{"instance": "p0", "role": "prefill"}'))
                return
            writer.write(self.raw)
            while self.endless:
                writer.write(b"[" * (1 << 16))
                self.sent += 1 << 16
                await writer.drain()
            if not self.raw:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(hostile: Hostile) -> AsyncIterator[str]:
    server = await asyncio.start_server(hostile.client, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        (Hostile(SILENT), "no answer within 0.3"),
        (Hostile(ENDLESS, endless=True), f"more than {MAX_REPLY} bytes"),
        (Hostile(REDIRECT), "gets 302"),
        (Hostile(b"garbage\r\n\r\n"), "malformed reply"),
        (Hostile(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000), "head is larger"),
        (Hostile(whole(b"[" * 500 + b"]" * 500)), "nested deeper"),
        (Hostile(whole(b'{"data": [{"id": "\\u001b[31mred"}]}')), "link report"),
        (Hostile(whole(b"\xff\xfe\x00")), "not JSON"),
    ],
    ids=["silence", "endless", "redirect", "garbage", "head", "deep", "control", "binary"],
)
async def test_hostile_engines_get_a_clear_line(
    hostile: Hostile, says: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDSERVE_TOKEN", TOKEN)
    async with serving(hostile) as url, asyncio.timeout(60):
        seconds = "0.3" if hostile.raw == SILENT else "20"
        assert await check(url, "--seconds", seconds) == 1
    out = capsys.readouterr().out
    assert any(says in line for line in out.splitlines() if line.startswith("FAIL")), out
    assert "\x1b" not in out
    assert hostile.sent < 100 * MAX_REPLY


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--type", "Nothing", "http://127.0.0.1:1"), "not known here"),
        (("http://127.0.0.1:1",), "127.0.0.1"),
        (("ftp://127.0.0.1:1",), "must be http://HOST:PORT"),
        (("http://127.0.0.1:99999",), "must be http://HOST:PORT"),
        (("--body", "[", "http://127.0.0.1:1"), "--body"),
        (("--body", "[]", "http://127.0.0.1:1"), "must be a JSON object"),
        (("--transfer", "x", "prefill/p0=http://127.0.0.1:1"), "must be HOST:PORT"),
        (("prefill/p=http://127.0.0.1:1", "prefill/q=http://127.0.0.1:1"), "both are of the role"),
        (("prefill/p=http://127.0.0.1:1", "decode/p=http://127.0.0.1:1"), "both are called"),
        (("http://127.0.0.1:1",) * 3, "one URL"),
    ],
)
async def test_a_wrong_command_line_is_reported(
    arguments: tuple[str, ...], says: str, capsys: Any
) -> None:
    assert await check(*arguments) == 2
    assert says in capsys.readouterr().err


async def test_an_instance_that_does_not_say_its_role(capsys: Any) -> None:
    async with serving(Hostile(whole(b"{}"), info=False)) as url:
        assert await check(url) == 2
    assert "PDSERVE_INSTANCE" in capsys.readouterr().err


def test_the_help_has_examples(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["engine", "check", "--help"])
    out = capsys.readouterr().out
    assert "examples:" in out and "docs/engines/own.md" in out


def test_the_page_lists_every_check() -> None:
    page = (ROOT / "docs" / "engines" / "own.md").read_text()
    assert [name for name in suite.NAMES if f"`{name}`" not in page] == []
