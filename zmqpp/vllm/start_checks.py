"""What can be known to be wrong with a stage's addresses before anything is loaded."""

from __future__ import annotations

import errno
import os
import socket

from zmqpp._port_owner import port_owner
from zmqpp.endpoint import Endpoint, check_resolvable
from zmqpp.errors import ConnectError
from zmqpp.vllm.options import StageOptions


def check_addresses(options: StageOptions) -> None:
    """Try this stage's own address, and look the other one up.

    Raises:
        ConnectError: the port is taken (by whom, where the system tells), the address is not of this machine,
            or the name of the stage before does not resolve.
    """
    _check_bindable(options.bind, options.stage_idx)
    check_resolvable(options.connect)


def _check_bindable(endpoint: Endpoint, stage: int) -> None:
    host = "" if endpoint.host == "*" else endpoint.host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConnectError(
            f"stage {stage} cannot bind {endpoint}: {endpoint.host!r} does not resolve ({error.strerror})"
        ) from None
    with socket.socket(family, kind, protocol) as probe:
        # As libzmq does: an address whose last owner has just closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConnectError(_why_not(endpoint, stage, error)) from None


def _why_not(endpoint: Endpoint, stage: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        owner = port_owner(endpoint.port)
        held = f" by {owner}" if owner else ""
        return f"stage {stage} cannot bind port {endpoint.port}: in use{held}; on one host give each stage its own port"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"stage {stage} cannot bind {endpoint}: {endpoint.host} is not an address of this machine; "
            f"give one of its own, or *:{endpoint.port} for all of them"
        )
    return f"stage {stage} cannot bind {endpoint}: {os.strerror(error.errno or 0)}"
