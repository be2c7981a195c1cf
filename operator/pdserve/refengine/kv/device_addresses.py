"""Which addresses of devices KV may go to. Pure.

A peer table says what a node's annotation or a pod's networks say, so any text may be in it. Only
literal unicast addresses count, and a loopback address only beside a pod that is on loopback.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from pdserve.terms import Device

MAX_DEVICES = 64
"""Devices of one instance whose addresses are used."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def usable_addresses(devices: Iterable[Device], pod: str) -> tuple[str, ...]:
    """Addresses for KV by position of the device, in one spelling each.

    Empty where a device has none, where it is none that KV may go to, or where a device before
    has the same one.

    Args:
        devices: of one instance, in device-id order.
        pod: the host at which the instance's pod listens.
    """
    beside = _parsed(pod)
    loopback = beside is not None and beside.is_loopback
    found: list[str] = []
    for device in list(devices)[:MAX_DEVICES]:
        address = _parsed(device.ip or "")
        text = "" if address is None or not _unicast(address, loopback) else str(address)
        found.append("" if text in found else text)
    return tuple(found)


def same_family(a: str, b: str) -> bool:
    """Whether a connection can go from one address to the other."""
    return (":" in a) == (":" in b)


def _parsed(text: str) -> IpAddress | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None  # of this machine's interfaces: means nothing to another
        return address.ipv4_mapped or address
    return address


def _unicast(address: IpAddress, loopback: bool) -> bool:
    """Link-local addresses need an interface beside them, which no table names."""
    if address.is_loopback:
        return loopback
    return not (
        address.is_unspecified
        or address.is_multicast
        or address.is_link_local
        or str(address) == "255.255.255.255"
    )
