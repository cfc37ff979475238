"""Which addresses this machine has."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

__all__ = ["address_doubt", "own_addresses"]

_SIOCGIFADDR = 0x8915  # linux/sockios.h


def own_addresses() -> list[str]:
    """Addresses others can reach: the first IPv4 address of each interface, and all IPv6 ones but link-local."""
    found = [address for _, name in socket.if_nameindex() if (address := _ipv4_of(name))]
    usable = [address for address in [*found, *_ipv6()] if not ipaddress.ip_address(address).is_loopback]
    return list(dict.fromkeys(usable))


def address_doubt(host: str) -> str:
    """Why others may not find a stage that binds `host` on this machine; empty when all is well."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except OSError:
        return f"{host} does not resolve on this machine; give its address in place of its name"
    where = str(address[0])
    named = host if where == host else f"{host} ({where})"
    if not _can_bind(family, address):
        has = ", ".join(own_addresses()) or "only loopback"
        return f"{named} is not an address of this machine (it has {has})"
    if where != host and ipaddress.ip_address(where).is_loopback:
        return (
            f"{host} is {where} on this machine, where no other can reach it; give its address on the network"
        )
    return ""


def _can_bind(family: int, address: tuple[object, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def _ipv4_of(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None  # no IPv4 address, or down
    return socket.inet_ntoa(answer[20:24])


def _ipv6() -> list[str]:
    """Source: proc(5), net/if_inet6: 32 hex digits come first; the fourth column is the scope, 20 link-local."""
    try:
        lines = Path("/proc/thread-self/net/if_inet6").read_text().splitlines()
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [str(ipaddress.IPv6Address(int(row[0], 16))) for row in rows if len(row) > 3 and row[3] != "20"]
