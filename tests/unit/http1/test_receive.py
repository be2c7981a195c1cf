"""Bytes of a connection to requests and refusals, however the bytes are cut."""

from __future__ import annotations

import pytest

from pdserve.http1.receive import Receiver

pytestmark = pytest.mark.interpreted  # a subclass in Python of what is compiled

POST = (
    b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: a\r\nX-Request-ID: r-1\r\n"
    b"content-length: 5\r\n\r\nhello"
)
GET = b"GET /health HTTP/1.0\r\n\r\n"


class Owner(Receiver):
    """Records what an owner receives."""

    def __init__(self, max_head: int = 1000, max_body: int = 10) -> None:
        super().__init__(max_head, max_body)
        self.told: list[str] = []

    def began(self) -> None:
        self.told.append("began")

    def awaits_body(self) -> None:
        self.told.append("awaits body")


def test_a_request_in_parts() -> None:
    owner = Owner()
    owner.receive(POST)
    (request,) = owner.received
    assert (request.method, request.path, request.body) == ("POST", "/v1/completions", b"hello")
    assert request.header("x-request-id") == "r-1"
    assert request.header("absent") is None
    assert request.keep_alive
    assert request.http_1_1
    assert owner.told == ["began"]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_any_cut_of_pipelined_requests_gives_the_same(size: int) -> None:
    owner, data = Owner(), POST + POST + GET
    for start in range(0, len(data), size):
        owner.receive(data[start : start + size])
    assert [r.path for r in owner.received] == ["/v1/completions"] * 2 + ["/health"]
    assert [r.body for r in owner.received] == [b"hello", b"hello", b""]
    assert [r.keep_alive for r in owner.received] == [True, True, False]
    assert not owner.received[-1].http_1_1
    assert owner.refusal is None


def test_of_repeated_headers_the_last_wins() -> None:
    owner = Owner()
    owner.receive(b"GET / HTTP/1.1\r\nA: 1\r\na: 2\r\n\r\n")
    assert owner.received[0].header("a") == "2"


def test_a_client_that_waits_before_its_body_is_noticed() -> None:
    owner = Owner()
    owner.receive(b"POST / HTTP/1.1\r\nexpect: 100-Continue\r\ncontent-length: 2\r\n\r\n")
    assert owner.told == ["began", "awaits body"]
    owner.receive(b"ok")
    assert owner.received[0].body == b"ok"


REFUSED = {
    "declared body": (b"POST / HTTP/1.1\r\ncontent-length: 11\r\n\r\n", 413, "limit of 10 bytes"),
    "waiting with a declared body": (
        b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n",
        413,
        "limit of 10 bytes",
    ),
    "chunked body": (
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nb\r\n" + b"x" * 11 + b"\r\n",
        413,
        "limit of 10 bytes",
    ),
    "headers": (b"GET / HTTP/1.1\r\na: " + b"x" * 1000 + b"\r\n\r\n", 431, "larger than 1000"),
    "target": (b"GET /" + b"x" * 1000 + b" HTTP/1.1\r\n\r\n", 431, "larger than 1000"),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01", 400, "malformed HTTP"),
    "two lengths": (
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        400,
        "malformed HTTP",
    ),
    "tunnel": (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n", 400, "no proxy"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("size", [1, 10_000])
def test_what_is_refused_after_what_was_received(case: str, size: int) -> None:
    data, status, message = REFUSED[case]
    data = POST + data
    owner = Owner()
    for start in range(0, len(data), size):
        owner.receive(data[start : start + size])
    assert [r.body for r in owner.received] == [b"hello"]
    assert owner.refusal is not None
    assert owner.refusal.status == status
    assert message in owner.refusal.message
    assert "awaits body" not in owner.told


def test_a_header_without_end_is_refused_before_it_fills_the_memory() -> None:
    owner, sent = Owner(), 0
    owner.receive(POST + b"GET / HTTP/1.1\r\na: ")
    while owner.refusal is None and sent < 5000:
        owner.receive(b"x" * 100)
        sent += 100
    assert owner.refusal is not None
    assert owner.refusal.status == 431
    assert sent <= 1100


def test_nothing_is_taken_after_a_refusal() -> None:
    owner = Owner()
    owner.receive(REFUSED["declared body"][0])
    first = owner.refusal
    owner.receive(b"x" * 11 + POST)
    owner.receive(b"\x00 not HTTP")
    assert owner.refusal is first
    assert not owner.received


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://gateway.example:8080/v1/completions?x=1", "/v1/completions"),
        (b"HTTPS://[::1]/v1/models", "/v1/models"),
        (b"http://gateway", "/"),
        (b"/v1/models/http://a/b", "/v1/models/http://a/b"),
        (b"*", "*"),
    ],
)
def test_the_path_of_a_target_with_or_without_its_host(target: bytes, path: str) -> None:
    owner = Owner()
    method = b"OPTIONS" if target == b"*" else b"GET"
    owner.receive(method + b" " + target + b" HTTP/1.1\r\nhost: a\r\n\r\n")
    assert [r.path for r in owner.received] == [path]


def test_trailers_change_nothing_and_are_bounded() -> None:
    head = b"POST / HTTP/1.1\r\nx-api-key: mine\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    owner = Owner()
    owner.receive(head + b"x-api-key: other\r\nx-request-id: r\r\n\r\n")
    assert owner.received[0].header("x-api-key") == "mine"
    assert owner.received[0].header("x-request-id") is None
    owner.receive(head + b"x: y\r\n" * 600 + b"\r\n")
    assert owner.refusal is not None and owner.refusal.status == 431


@pytest.mark.parametrize("size", [1, 1000])
def test_the_method_of_what_is_refused_is_known(size: int) -> None:
    owner, data = Owner(), POST + b"HEAD / HTTP/1.1\r\na: " + b"x" * 3000
    for start in range(0, len(data), size):
        owner.receive(data[start : start + size])
    assert owner.refusal is not None
    assert owner.method == "HEAD"


OFFER = (
    b"POST /a?b HTTP/1.1\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nx: y\r\n"
    b"http2-settings: AAA\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello"
)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_an_offer_of_another_protocol_is_ignored(size: int) -> None:
    owner, data = Owner(), (OFFER + POST) * 2000
    for start in range(0, len(data), size):
        owner.receive(data[start : start + size])
    assert owner.refusal is None
    assert [(r.method, r.body, r.keep_alive) for r in owner.received] == [
        ("POST", b"hello", True)
    ] * 4000
    assert owner.received[0].path == "/a"
    assert owner.received[0].header("x") == "y"
    assert owner.told.count("awaits body") == 2000


def test_an_offer_with_close_closes() -> None:
    owner = Owner()
    owner.receive(OFFER.replace(b"Upgrade, ", b"close, upgrade, "))
    assert not owner.received[0].keep_alive


def test_a_chunked_body_behind_an_offer() -> None:
    owner = Owner()
    head = OFFER.partition(b"content-length")[0]
    owner.receive(head + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + GET)
    assert [r.body for r in owner.received] == [b"ok", b""]
