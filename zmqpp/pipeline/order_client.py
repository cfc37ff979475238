"""Giving an order to the pipeline whose logs lie in a folder, and telling what comes of it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zmqpp.errors import ConfigError, RemoteError
from zmqpp.pipeline.order_server import SOCKET_NAME, folder_path, peer_user

__all__ = ["give_order"]

_ANSWER_S = 10.0


def give_order(folder: Path, order: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Returns once it is carried out.

    Args:
        folder: the pipeline's --log-dir.
        say: gets each line but the last one of a failure.
    Raises:
        ConfigError: no pipeline runs there, or it refuses the order. RemoteError: it failed, or the pipeline ended.
    """
    with _connected(folder) as connection, connection.makefile("rb") as lines:
        try:
            connection.sendall(json.dumps(order).encode() + b"\n")
            connection.settimeout(None)
            for line in lines:
                told = json.loads(line)
                code = told["code"]
                if code:
                    raise ConfigError(told["line"]) if code == 2 else RemoteError(told["line"])
                if told["line"]:
                    say(told["line"])
                if code == 0:
                    return
        except ConnectionError:
            pass
    raise RemoteError("the pipeline ended meanwhile")


def _connected(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ANSWER_S)
        with folder_path(folder) as place:
            connection.connect(f"{place}/{SOCKET_NAME}")
        if peer_user(connection) != os.geteuid() and os.geteuid():
            raise ConfigError(f"{folder / SOCKET_NAME}: another user listens there")
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        connection.close()
        raise ConfigError(
            f"no pipeline runs with its logs in {folder}: give the --log-dir of `zmqpp serve`"
        ) from None
    except PermissionError:
        connection.close()
        raise ConfigError(
            f"{folder / SOCKET_NAME}: only the user who runs the pipeline gives it orders"
        ) from None
    except OSError as error:
        connection.close()
        raise ConfigError(f"{folder / SOCKET_NAME}: {error.strerror or error}") from error
    except ConfigError:
        connection.close()
        raise
    return connection
