"""Which TCP ports of this host are free. One may be taken before it is used; the stage then says so."""

from __future__ import annotations

import random
import socket

from zmqpp._port_owner import port_owner
from zmqpp.errors import ConfigError

__all__ = ["check_port_free", "free_base_port", "free_port", "is_free"]

# Below 32768, where Linux starts handing out ports to outgoing connections (net.ipv4.ip_local_port_range).
_FIRST, _LAST = 15550, 32000


def free_base_port(stages: int, host: str = "127.0.0.1") -> int:
    """A port B such that B .. B+`stages` are free: the forward ports and the return port."""
    for _ in range(200):
        # Random, so that two pipelines started together do not choose the same ports.
        base = random.randrange(_FIRST, _LAST - stages)
        if all(is_free(host, base + offset) for offset in range(stages + 1)):
            return base
    raise ConfigError(f"no {stages + 1} free ports in a row found between {_FIRST} and {_LAST} on {host}")


def free_port(host: str = "127.0.0.1") -> int:
    """Any free port, none of those that an outgoing connection may take before it is used."""
    return free_base_port(0, host)


def check_port_free(host: str, port: int, flag: str) -> None:
    """Raise ConfigError naming `flag` when something listens on the port already."""
    if not is_free(host, port):
        owner = port_owner(port) or "another process"
        raise ConfigError(f"{flag}: port {port} on {host} is in use by {owner}; choose another")


def is_free(host: str, port: int) -> bool:
    """Whether `port` can be bound at `host` now, a name or address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do, so that a connection still in TIME_WAIT does not count as in use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
