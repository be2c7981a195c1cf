"""One file from a real server that cuts, stalls, redirects, refuses and lies."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from tests.support.weights_server import Asked, Reply, in_turn, serving

from pdserve.downloader.access import ServerAccess
from pdserve.downloader.errors import DownloadError, WrongDigestError
from pdserve.downloader.part_file import ByteBudget
from pdserve.downloader.transfer import REDIRECTS, TRIES, Patience, Transfer

WEIGHTS = random.Random(1).randbytes(3 << 20)
OTHER = random.Random(2).randbytes(3 << 20)
KEY = ServerAccess(authorization="Bearer key")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Fetching:
    """One fetch into a directory, with what was said and how long was waited."""

    def __init__(self, folder: Path, access: ServerAccess = KEY, slow: float = 60.0) -> None:
        self.target = folder / "m.gguf"
        self.part = folder / ".m.gguf.part"
        self.waits: list[float] = []
        self.said: list[str] = []
        patience = Patience(self.waits.append, timeout=0.5, slow_seconds=slow)
        self._transfer = Transfer(access, self.said.append, patience)

    def __call__(self, url: str, wanted: bytes = WEIGHTS, most: int = 1 << 30) -> None:
        self._transfer.fetch(f"{url}/m.gguf", sha(wanted), self.target, ByteBudget(most))


@pytest.fixture
def fetch(tmp_path: Path) -> Fetching:
    return Fetching(tmp_path)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_is_fetched_whole_with_its_credentials(fetch: Fetching, chunked: bool) -> None:
    with serving(in_turn(Reply(WEIGHTS, chunked=chunked))) as server:
        fetch(server.url)
    assert fetch.target.read_bytes() == WEIGHTS
    assert not fetch.part.exists()
    assert server.asked == [Asked("/m.gguf", "", "Bearer key", None)]


def test_a_presigned_querys_parts_are_sent_and_never_shown(tmp_path: Path) -> None:
    fetch = Fetching(tmp_path, ServerAccess(query="X-Amz-Signature=s3cret&x=1"))
    with serving(in_turn(Reply(status=503), Reply(WEIGHTS, status=403))) as server:
        with pytest.raises(DownloadError, match="403: the Secret's credentials") as refused:
            fetch(server.url)
        assert {asked.query for asked in server.asked} == {"X-Amz-Signature=s3cret&x=1"}
    assert "s3cret" not in "".join([str(refused.value), *fetch.said])


def test_a_cut_connection_goes_on_where_it_ended(fetch: Fetching) -> None:
    cuts = [Reply(WEIGHTS, cut=1 << 20), Reply(WEIGHTS, cut=5), Reply(WEIGHTS)]
    with serving(in_turn(*cuts)) as server:
        fetch(server.url)
    assert fetch.target.read_bytes() == WEIGHTS
    ranges = [asked.range for asked in server.asked]
    assert ranges == [None, f"bytes={1 << 20}-", f"bytes={(1 << 20) + 5}-"]
    assert len(fetch.waits) == 2


def test_a_process_goes_on_where_the_one_before_it_ended(fetch: Fetching) -> None:
    fetch.part.write_bytes(WEIGHTS[: 1 << 20])
    with serving(in_turn(Reply(WEIGHTS))) as server:
        fetch(server.url)
    assert fetch.target.read_bytes() == WEIGHTS
    assert [asked.range for asked in server.asked] == [f"bytes={1 << 20}-"]


def test_what_a_process_left_whole_is_not_fetched_again(fetch: Fetching) -> None:
    fetch.part.write_bytes(WEIGHTS)
    fetch("http://127.0.0.1:9")
    assert fetch.target.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("left", "replies"),
    [
        pytest.param(OTHER[: 1 << 20], [Reply(WEIGHTS)], id="of another file"),
        pytest.param(OTHER + b"more", [Reply(status=416), Reply(WEIGHTS)], id="longer than it is"),
        pytest.param(WEIGHTS[:9], [Reply(WEIGHTS, ranges=False)], id="without ranges"),
    ],
)  # fmt: skip
def test_a_part_that_does_not_fit_is_dropped(
    fetch: Fetching, left: bytes, replies: list[Reply]
) -> None:
    fetch.part.write_bytes(left)
    with serving(in_turn(*replies)) as server:
        fetch(server.url)
    assert fetch.target.read_bytes() == WEIGHTS


def test_a_file_that_changes_between_two_tries_is_begun_again(fetch: Fetching) -> None:
    with serving(in_turn(Reply(OTHER, cut=99, tag='"old"'), Reply(WEIGHTS, tag='"new"'))) as server:
        fetch(server.url)
    assert fetch.target.read_bytes() == WEIGHTS
    assert [asked.range for asked in server.asked] == [None, "bytes=99-"]


def test_another_content_is_refused_and_nothing_of_it_stays(fetch: Fetching) -> None:
    with serving(in_turn(Reply(OTHER))) as server, pytest.raises(WrongDigestError, match="SHA-256"):
        fetch(server.url)
    assert not fetch.target.exists()
    assert not fetch.part.exists()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_ends_it_at_once(fetch: Fetching, status: int) -> None:
    with serving(in_turn(Reply(status=status))) as server:
        with pytest.raises(DownloadError, match=f"answers {status}"):
            fetch(server.url)
        assert len(server.asked) == 1


def test_without_a_secret_a_401_says_where_one_is_named(tmp_path: Path) -> None:
    fetch = Fetching(tmp_path, ServerAccess())
    with serving(in_turn(Reply(status=401))) as server:
        with pytest.raises(DownloadError, match="wants credentials, which model"):
            fetch(server.url)
        assert server.asked[0].authorization is None


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_what_passes_is_tried_again_with_growing_pauses(fetch: Fetching, status: int) -> None:
    busy = Reply(status=status, headers={"Retry-After": "7"})
    with serving(in_turn(busy, Reply(status=status), Reply(status=status), Reply(WEIGHTS))) as at:
        fetch(at.url)
    assert fetch.waits == [7, 2, 4]
    assert fetch.target.read_bytes() == WEIGHTS


def test_tries_without_progress_are_bounded(fetch: Fetching) -> None:
    with serving(in_turn(Reply(status=503))) as server:
        with pytest.raises(DownloadError, match=f"{TRIES} times in a row"):
            fetch(server.url)
        assert len(server.asked) == TRIES
    assert max(fetch.waits) <= 30


def test_a_server_that_is_not_there_is_given_up(fetch: Fetching) -> None:
    with pytest.raises(DownloadError, match="Connection refused, 6 times in a row"):
        fetch("http://127.0.0.1:9")


def test_a_stalled_connection_is_given_up_and_goes_on(fetch: Fetching) -> None:
    with serving(in_turn(Reply(WEIGHTS, stall=1 << 20), Reply(WEIGHTS))) as server:
        fetch(server.url)
    assert fetch.target.read_bytes() == WEIGHTS
    assert server.asked[1].range == f"bytes={1 << 20}-"


def test_a_server_that_hardly_sends_is_given_up(tmp_path: Path) -> None:
    fetch = Fetching(tmp_path, slow=0.1)
    with (
        serving(in_turn(Reply(WEIGHTS, trickle=0.02))) as server,
        pytest.raises(DownloadError, match=r"only .* bytes in"),
    ):
        fetch(server.url)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(WEIGHTS), id="by what it says before"),
        pytest.param(Reply(WEIGHTS, chunked=True), id="while it comes"),
    ],
)
def test_more_than_is_allowed_is_refused(fetch: Fetching, reply: Reply) -> None:
    with serving(in_turn(reply)) as server, pytest.raises(DownloadError, match="maxGigabytes"):
        fetch(server.url, most=2 << 20)
    assert not fetch.part.exists() or fetch.part.stat().st_size <= 2 << 20


def test_more_than_the_disk_has_is_refused_before_it_comes(fetch: Fetching) -> None:
    huge = Reply(b"x", headers={"Content-Length": str(1 << 60)})
    with serving(in_turn(huge)) as server, pytest.raises(DownloadError, match="disk has"):
        fetch(server.url, most=1 << 62)
    assert fetch.part.stat().st_size == 0


def test_compressed_content_is_refused(fetch: Fetching) -> None:
    reply = Reply(WEIGHTS, headers={"Content-Encoding": "gzip"})
    with serving(in_turn(reply)) as server, pytest.raises(DownloadError, match="compresses"):
        fetch(server.url)


def test_another_host_gets_no_credentials_and_its_file_is_checked_alike(tmp_path: Path) -> None:
    fetch = Fetching(tmp_path, ServerAccess("Bearer key", "sig=1"))
    with serving(in_turn(Reply(WEIGHTS, cut=9), Reply(WEIGHTS))) as cdn:
        moved = Reply(status=302, headers={"Location": f"{cdn.url}/signed?for=cdn"})
        with serving(in_turn(moved)) as hub:
            fetch(hub.url)
    assert fetch.target.read_bytes() == WEIGHTS
    assert {(a.authorization, a.query) for a in hub.asked} == {("Bearer key", "sig=1")}
    # Each try begins at the hub: what it signs for another host expires.
    assert cdn.asked == [
        Asked("/signed", "for=cdn", None, None),
        Asked("/signed", "for=cdn", None, "bytes=9-"),
    ]


def test_a_host_that_redirects_back_gets_no_credentials_either(tmp_path: Path) -> None:
    """Else another host could choose where on the first one they are sent."""
    fetch = Fetching(tmp_path)
    urls: list[str] = []

    def hub(asked: Asked) -> Reply:
        if asked.path == "/stolen":
            return Reply(WEIGHTS)
        return Reply(status=302, headers={"Location": f"{urls[1]}/x"})

    def cdn(_asked: Asked) -> Reply:
        return Reply(status=302, headers={"Location": f"{urls[0]}/stolen"})

    with serving(hub) as first, serving(cdn) as second:
        urls += [first.url, second.url]
        fetch(first.url)
    assert [a.authorization for a in first.asked] == ["Bearer key", None]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("file:///etc/passwd", "redirects to no HTTP URL"),
        ("ftp://127.0.0.1/m", "redirects to no HTTP URL"),
        ("http://user:pw@127.0.0.1/m", "redirects to no HTTP URL"),
        ("/m.gguf", f"more than {REDIRECTS} redirects"),
        ("", f"more than {REDIRECTS} redirects"),
    ],
)
def test_redirects_elsewhere_or_without_end_are_refused(
    fetch: Fetching, location: str, says: str
) -> None:
    reply = Reply(status=302, headers={"Location": location})
    with serving(in_turn(reply)) as server, pytest.raises(DownloadError, match=says):
        fetch(server.url)
    assert len(server.asked) <= REDIRECTS + 1
