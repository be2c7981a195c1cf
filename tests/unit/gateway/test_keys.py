"""API keys: which lines are keys, guesses by address, and no body without one."""

import asyncio
import time
from pathlib import Path

import pytest
from tests.support.gateway_rig import Rig, parse_answer

from pdserve.gateway.auth import KeyRing
from pdserve.gateway.guesses import BURST, MAX_ADDRESSES, Guesses
from pdserve.http1.errors import ApiError
from pdserve.http1.limits import ClientLimits


def status(ring: KeyRing, key: str, address: str = "10.0.0.1") -> int:
    try:
        ring.check(f"Bearer {key}".encode(), None, address)
    except ApiError as error:
        return error.status
    return 200


def test_only_well_formed_lines_are_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "team").write_text(
        "# keys of team A, rotate in May\n\nsk-alice-1\n  sk-bob_2==  \nnot a key\nkey,1\n"
        + "x" * 600 + "\n"
    )  # fmt: skip
    ring = KeyRing(tmp_path)
    assert [status(ring, k) for k in ("sk-alice-1", "sk-bob_2==")] == [200, 200]
    for line in ("# keys of team A, rotate in May", "not a key", "key,1", "x" * 600, ""):
        assert status(ring, line, address=f"10.0.1.{len(line) % 250}") == 401
    told = [r.getMessage() for r in caplog.records]
    assert [m.split(":")[0] for m in told] == ["team, line 5", "team, line 6", "team, line 7"]
    assert "not a key" not in "".join(told).replace("not a well-formed", "")


def test_guesses_are_slowed_by_address_and_known_keys_go_on(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("sk-alice-1\nsk-bob-22\n")
    ring = KeyRing(tmp_path)
    assert status(ring, "sk-alice-1") == 200
    answers = [status(ring, f"sk-guess-{i}") for i in range(100)]
    assert answers.count(401) <= BURST + 2
    assert answers[-1] == 429
    assert status(ring, "sk-bob-22") == 429, "a right guess is not looked at either"
    assert status(ring, "sk-alice-1") == 200, "who was accepted here goes on"
    assert status(ring, "sk-bob-22", address="10.0.0.2") == 200, "other addresses do"


def test_guesses_come_back_with_time_in_bounded_memory() -> None:
    guesses = Guesses()
    for _ in range(100):
        guesses.wrong("10.0.0.1", 0.0)
    assert 0 < guesses.wait("10.0.0.1", b"x", 0.0) <= 1.0
    assert guesses.wait("10.0.0.1", b"x", 1.1) == 0.0
    for i in range(3 * MAX_ADDRESSES):
        guesses.wrong(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", 0.0)
    assert len(guesses) == MAX_ADDRESSES
    fresh = Guesses()
    for i in range(100):
        fresh.wrong(f"2001:db8::{i:x}", 0.0)
    assert len(fresh) == 1, "a /64 is one client"


async def test_no_body_is_read_before_the_key_is_checked(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "k").write_text("sk-alice-1\n")
    await rig.one_group(keys=tmp_path, limits=ClientLimits())
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n")
    began = time.perf_counter()
    answer = parse_answer(await asyncio.wait_for(reader.readuntil(b"}}"), 60))
    assert answer.status == 401
    assert time.perf_counter() - began < 30, "not at the end of the time for a body"
    writer.write(b"x" * 1_000_000)
    assert rig.gateway.server.memory.used == 0
    writer.close()


async def test_keys_from_a_directory_that_changes(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("sk-alice\n")
    (tmp_path / "..data").mkdir()
    await rig.one_group(keys=tmp_path)

    async def status(key: str | None) -> int:
        headers = {"authorization": key} if key else {}
        return (await rig.complete(headers=headers)).status

    assert await status("Bearer sk-alice") == 200
    assert await status("bearer sk-alice") == 200
    for wrong in (None, "Bearer sk-mallory", "Bearer ", "Basic sk-alice", "sk-alice"):
        assert await status(wrong) == 401
    refused = await rig.request("GET", "/v1/models")
    assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
    assert (await rig.request("GET", "/metrics")).status == 200

    (tmp_path / "bob").write_text("sk-bob")
    (tmp_path / "alice").unlink()
    for _ in range(1200):
        if await status("Bearer sk-bob") == 200:
            break
        await asyncio.sleep(0.05)
    assert await status("Bearer sk-bob") == 200
    assert await status("Bearer sk-alice") == 401


async def test_a_key_where_a_proxy_keeps_authorization(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("sk-alice\n")
    await rig.one_group(keys=tmp_path)

    async def status(**headers: str) -> int:
        return (
            await rig.complete(headers={k.replace("_", "-"): v for k, v in headers.items()})
        ).status

    assert await status(x_api_key="sk-alice") == 200
    assert await status(x_api_key=" sk-alice ") == 200
    for wrong in ("", "sk-mallory", "Bearer sk-alice"):
        assert await status(x_api_key=wrong) == 401
    # Authorization counts where it is: a wrong one is not saved by the other header.
    assert await status(authorization="Bearer sk-alice", x_api_key="no") == 200
    assert await status(authorization="Bearer no", x_api_key="sk-alice") == 401


async def test_a_directory_without_keys_refuses_every_request(rig: Rig, tmp_path: Path) -> None:
    await rig.one_group(keys=tmp_path)
    assert (await rig.complete(headers={"authorization": "Bearer "})).status == 401
