"""What can be known to be wrong with a stage's addresses before anything is loaded."""

from __future__ import annotations

import errno
import os
import socket

from zmqpp._opening import check_bind
from zmqpp._port_owner import port_owner
from zmqpp.endpoint import Endpoint, check_resolvable
from zmqpp.errors import ConfigError, ConnectError
from zmqpp.keys import read_keys
from zmqpp.vllm.options import StageOptions


def check_addresses(options: StageOptions, api: Endpoint | None) -> None:
    """Try this stage's own addresses, and look the other one up.

    Args:
        api: stage 0's HTTP address, where vLLM binds it itself.

    Raises:
        ConnectError: a port is taken (by whom, where the system tells), an address is not of this machine,
            or the name of the stage before does not resolve.
        ConfigError: two of the three addresses are the same.
    """
    if options.bind == options.connect:
        raise ConfigError(
            f"stage {options.stage_idx} would receive from its own port {options.bind.port}: the address of the stage "
            f"before it must be another than --pipeline-local-bind-port"
        )
    if api is not None and api.port == options.bind.port:
        raise ConfigError(
            f"--port and --pipeline-local-bind-port are both {api.port}: give each its own port"
        )
    check_keys(options)
    check_bindable(options.bind, f"stage {options.stage_idx}")
    if api is not None:
        check_bindable(api, "stage 0's HTTP server")
    check_resolvable(options.connect)


def check_keys(options: StageOptions) -> None:
    """Read the keys, before anything is bound or loaded.

    Raises:
        ConfigError: they cannot be used, or are required and not there.
    """
    config = options.transport_config()
    try:
        if config.curve_dir:
            read_keys(config.curve_dir)
        check_bind(options.bind, config, "", warn=False)
    except ConfigError as error:
        raise ConfigError(f"stage {options.stage_idx}: {error}") from None


def check_bindable(endpoint: Endpoint, who: str) -> None:
    """Try to bind and let go again.

    Raises:
        ConnectError: it cannot be; why, and what to do.
    """
    host = "" if endpoint.host == "*" else endpoint.host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConnectError(
            f"{who} cannot bind {endpoint}: {endpoint.host!r} does not resolve ({error.strerror})"
        ) from None
    with socket.socket(family, kind, protocol) as probe:
        # As libzmq does: an address whose last owner has just closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConnectError(_why_not(endpoint, who, error)) from None


def _why_not(endpoint: Endpoint, who: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        owner = port_owner(endpoint.port)
        held = f" by {owner}" if owner else ""
        return (
            f"{who} cannot bind port {endpoint.port}: in use{held}; on one host give each stage its own port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{who} cannot bind {endpoint}: {endpoint.host} is not an address of this machine; "
            f"give one of its own, or *:{endpoint.port} for all of them"
        )
    return f"{who} cannot bind {endpoint}: {os.strerror(error.errno or 0)}"
