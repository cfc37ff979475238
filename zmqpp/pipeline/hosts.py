"""Where the stages of a plan bind and connect, given the machine of each. Pure; opens nothing.

    machines A, B, C        A binds A:BASE, B binds B:BASE, C binds C:BASE+3 (the return path)
    machines A, A, B        A binds A:BASE and A:BASE+1, B binds B:BASE+3

Source: the documented port rules; BASE on every machine, BASE + I where stages share one, return BASE + N.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from zmqpp.endpoint import connect_endpoint
from zmqpp.errors import ConfigError

__all__ = ["LOOPBACK", "RingPlace", "check_hosts", "is_loopback", "join", "parse_hosts", "ring_places"]

LOOPBACK = "127.0.0.1"
"""Where a bare `--pipeline-local-bind-port PORT` binds."""


@dataclass(frozen=True)
class RingPlace:
    """One stage's place on the ring."""

    host: str
    port: int
    previous: str
    """HOST:PORT where the stage before it binds."""

    @property
    def bind(self) -> str:
        """For --pipeline-local-bind-port: HOST:PORT, which others reach; on loopback PORT, as documented."""
        return str(self.port) if self.host == LOOPBACK else join(self.host, self.port)


def parse_hosts(text: str, flag: str = "--hosts") -> tuple[str, ...]:
    """`10.0.0.1,node-b,[fd00::7]` -> one name or address a stage, without brackets, each in its usual spelling.

    Raises:
        ConfigError: an empty entry, one that names no machine, or one with a port.
    """
    hosts = tuple(_one(part.strip(), flag, number) for number, part in enumerate(text.split(",")))
    check_hosts(hosts, flag)
    return hosts


def check_hosts(hosts: Sequence[str], flag: str = "--hosts") -> None:
    """Raise ConfigError when the list is too short, or mixes loopback with machines that cannot reach it."""
    if len(hosts) < 2:
        raise ConfigError(
            f"{flag} names {len(hosts)} host for as many stages, a pipeline needs at least 2; name a machine once "
            f"for each of its stages, for example {hosts[0]},{hosts[0]}"
        )
    near = [index for index, host in enumerate(hosts) if is_loopback(host)]
    if near and len(near) < len(hosts):
        raise ConfigError(
            f"{flag}: stage {near[0]} is at {hosts[near[0]]}, where only its own machine can reach it, but other "
            "stages are elsewhere; give its address on the network"
        )


def ring_places(hosts: Sequence[str], base_port: int) -> list[RingPlace]:
    """Where each stage binds, and whom it connects to."""
    total = len(hosts)
    ports = [base_port + index if hosts.count(host) > 1 else base_port for index, host in enumerate(hosts)]
    ports[-1] = base_port + total
    return [
        RingPlace(hosts[index], ports[index], join(hosts[index - 1], ports[index - 1]))
        for index in range(total)
    ]


def is_loopback(host: str) -> bool:
    """Whether the address is one that only its own machine reaches; for a name, whether it is `localhost`."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def join(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _one(text: str, flag: str, stage: int) -> str:
    if not text:
        raise ConfigError(
            f"{flag}: the entry of stage {stage} is empty; give one host a stage, with commas between"
        )
    bare = text.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return LOOPBACK if bare == "localhost" else _name(text, flag, stage)
    if address.is_unspecified:
        raise ConfigError(f"{flag}: {text} (stage {stage}) means every address, it names no machine")
    return str(address)


def _name(text: str, flag: str, stage: int) -> str:
    head, colon, tail = text.rpartition(":")
    if colon and tail.isdigit():
        raise ConfigError(
            f"{flag}: {text!r} (stage {stage}) has a port; give {head or 'the host'} alone, "
            "ports follow from --base-port"
        )
    try:
        return connect_endpoint(f"{text}:1").host
    except ConfigError:
        raise ConfigError(f"{flag}: {text!r} (stage {stage}) is no host name or IP address") from None
