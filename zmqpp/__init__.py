"""zmqpp: pipeline parallelism for vLLM over ZeroMQ. Importing it does no work; names load when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zmqpp.version import __version__

if TYPE_CHECKING:
    from zmqpp.communicator import ZeroMQCommunicator
    from zmqpp.config import TransportConfig
    from zmqpp.errors import ZmqppError
    from zmqpp.transport import Link

__all__ = ["Link", "TransportConfig", "ZeroMQCommunicator", "ZmqppError", "__version__"]

_HOMES = {
    "Link": "zmqpp.transport",
    "TransportConfig": "zmqpp.config",
    "ZeroMQCommunicator": "zmqpp.communicator",
    "ZmqppError": "zmqpp.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zmqpp' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
