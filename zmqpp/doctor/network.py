"""Ports of this machine, and the way to the others."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

from zmqpp._port_owner import port_owner
from zmqpp.doctor.deployment import Deployment
from zmqpp.doctor.finding import Finding, ok, problem, warning
from zmqpp.pipeline.hosts import RingPlace, is_loopback
from zmqpp.pipeline.own_address import address_doubt, own_addresses
from zmqpp.pipeline.ports import is_free

__all__ = ["hosts", "ports", "proxies", "ways"]

_CONNECT_S = 3.0
_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


def ports(deployment: Deployment) -> Iterator[Finding]:
    """Those that stages of this machine will bind."""
    wanted = [
        (deployment.places[index].port, deployment.places[index].host, "--base-port")
        for index in deployment.here
    ]
    if 0 in deployment.here:
        wanted.append((deployment.api_port, "0.0.0.0", "--api-port"))
    free = []
    for port, host, flag in wanted:
        if is_free(host, port):
            free.append(port)
        else:
            yield _taken(port, flag)
    if free:
        yield ok("ports", f"{', '.join(map(str, free))} free")


def _taken(port: int, flag: str) -> Finding:
    owner = port_owner(port)
    text = f"in use by {owner}" if owner else "in use (by a process you may not look into)"
    if owner and ("--pipeline-stage-mode" in owner or "VLLM" in owner):
        return warning(
            f"port {port}", text, f"a pipeline is running already; for another one choose another {flag}"
        )
    return problem(f"port {port}", text, f"end it, or choose another {flag}")


def hosts(deployment: Deployment) -> Iterator[Finding]:
    """Is this machine one of those named, by an address that others can reach?"""
    if not deployment.hosts:
        return
    if deployment.here:
        mine = ", ".join(f"stage {index} ({deployment.hosts[index]})" for index in deployment.here)
        yield ok("hosts", f"this machine is {mine}")
        return
    has = ", ".join(own_addresses()) or "only loopback"
    remedy = "name one of these in --hosts, or run this on the machines named there"
    yield problem(
        "hosts", f"none of {', '.join(deployment.hosts)} is an address of this machine (it has {has})", remedy
    )
    for host in dict.fromkeys(deployment.hosts):
        doubt = address_doubt(host)
        if doubt and "is not an address" not in doubt:
            yield warning("hosts", doubt.partition("; ")[0], doubt.partition("; ")[2])


def ways(deployment: Deployment) -> Iterator[Finding]:
    """Try to reach every other machine's port; needed is only that of the stage before one of ours."""
    total = len(deployment.places)
    for index, place in enumerate(deployment.places):
        if index in deployment.here or is_loopback(place.host):
            continue
        follower = (index + 1) % total
        needed = follower in deployment.here or not deployment.here
        yield _way(index, place, deployment.places[follower].host, needed)


def _way(index: int, place: RingPlace, follower: str, needed: bool) -> Finding:
    where = f"{place.host} port {place.port} (stage {index})"
    kind = problem if needed else warning
    try:
        with socket.create_connection((place.host, place.port), timeout=_CONNECT_S):
            return ok("way", f"{where} answers")
    except ConnectionRefusedError:
        return ok("way", f"{where} refused: nobody listens there yet, but the way is open")
    except TimeoutError:
        text = f"{where} gives no answer: the machine is down, or a firewall drops it"
    except socket.gaierror as error:
        text = f"{place.host} (stage {index}) does not resolve ({error.strerror})"
        return kind("way", text, "give its address, or add it to DNS or /etc/hosts on every machine")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        text = f"{where} cannot be reached ({reason})"
        if error.errno not in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return kind("way", text, "check the address")
    return kind(
        "way", text, f"on {place.host} open TCP port {place.port} for {follower}, and check the route"
    )


def proxies(deployment: Deployment) -> Iterator[Finding]:
    """curl and most clients would send requests for stage 0 to a proxy."""
    proxy = next((name for name in _PROXIES if os.environ.get(name)), None)
    if proxy is None:
        yield ok("proxy", "none set")
        return
    direct = {
        name.strip() for name in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    }
    wanted = ["localhost", "127.0.0.1", *deployment.hosts[:1]]
    missing = [] if "*" in direct else [host for host in wanted if host not in direct]
    if missing:
        remedy = f"export no_proxy={','.join([*sorted(direct - {''}), *missing])}"
        text = f"{proxy} is set, and clients may send requests for stage 0 there"
        yield warning("proxy", text, remedy)
    else:
        yield ok("proxy", f"{proxy} is set, but not used for this pipeline")
