"""Which addresses of devices in a table KV may go to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pdserve.refengine.kv.device_addresses import MAX_DEVICES, usable_addresses
from pdserve.terms import Device

USABLE: dict[str, tuple[Sequence[str | None], str, tuple[str, ...]]] = {
    "as told": (("10.0.0.1", "10.0.0.2"), "10.9.9.9", ("10.0.0.1", "10.0.0.2")),
    "positions stay": ((None, "x", "10.0.0.2"), "10.9.9.9", ("", "", "10.0.0.2")),
    "one spelling": (("FD00:0::1", "::ffff:10.0.0.1"), "fd00::9", ("fd00::1", "10.0.0.1")),
    "once": (("fd00::1", "fd00:0::1"), "fd00::9", ("fd00::1", "")),
    "loopback beside a pod that is not": (("127.0.0.1", "::1"), "10.9.9.9", ("", "")),
    "loopback beside loopback": (("127.0.0.1",), "127.0.0.9", ("127.0.0.1",)),
    "a pod by name": (("127.0.0.1", "10.0.0.1"), "pod", ("", "10.0.0.1")),
    "odd": (("", " 10.0.0.1", "10.1", "010.0.0.1", "10.0.0.1/8", "[fd00::1]"), "10.9.9.9",
            ("",) * 6),
    "scoped": (("fe80::1%eth0", "fd00::1%1"), "10.9.9.9", ("", "")),
    "to all": (("255.255.255.255", "ff02::1", "::", "0.0.0.0"), "10.9.9.9", ("",) * 4),
    "too many": (tuple(f"10.0.1.{i}" for i in range(99)), "10.9.9.9",
                 tuple(f"10.0.1.{i}" for i in range(MAX_DEVICES))),
}  # fmt: skip


@pytest.mark.parametrize("case", USABLE)
def test_which_addresses_kv_may_go_to(case: str) -> None:
    told, pod, want = USABLE[case]
    assert usable_addresses([Device(i, ip) for i, ip in enumerate(told)], pod) == want
