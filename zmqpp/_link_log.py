"""What a link tells of itself: its counters, and, in the log, each thing once: its lane and why, whom it refused."""

from __future__ import annotations

import logging
from typing import Any

from zmqpp import _engine

__all__ = ["LinkLog", "named_stats"]

_log = logging.getLogger("zmqpp")
_EXPECTED = ("another host", "the sender offers none: it was told")
"""How the engine's reason begins when shared memory was out of the question."""
_SOCKET = 1
"""Of the engine's lanes."""
_NOT_BETWEEN_DEVICES = "not cuda_ipc: "
"""How it begins when device memory is refused."""


class LinkLog:
    """The log of one link.

    Args:
        name: of this place; previous: of the one before.
        lane_is_open: whether the lane was left to the engine, so that its choice may surprise.
    """

    def __init__(
        self, engine: _engine.Link, name: str, previous: str, connect: str | None, lane_is_open: bool
    ) -> None:
        self._engine = engine
        self._who = f"{name}: " if name else ""
        self._previous, self._connect = previous, connect
        self._lane_is_open = lane_is_open
        self._lane_said = self._device_said = False
        self._key_trouble_said = False

    def say_lane(self) -> None:
        """Once, when the receiving half's lane is known: why it is the socket, where it could have been shm."""
        lane = 0 if self._lane_said else self._engine.stats()["receive_lane"]
        if not lane:
            return
        self._lane_said = True
        reason = self._engine.lane_reason()
        if self._lane_is_open and reason and lane == _SOCKET:
            level = logging.INFO if reason.startswith(_EXPECTED) else logging.WARNING
            text = "%stensors from %s come through the socket, not through shared memory: %s"
            _log.log(level, text, self._who, self._previous, reason)

    def forget_lane(self) -> None:
        """It is chosen anew."""
        self._lane_said = self._device_said = False

    def say_refusals(self) -> None:
        """Each address once with each reason; called now and then, never on the way of a message."""
        self._say_device()
        for address, reason in self._engine.take_refusals():
            told = {"refused": (address, reason)}  # for a handler that wants the parts
            _log.warning("%srefused a peer at %s: %s", self._who, address, reason, extra=told)
        trouble = "" if self._key_trouble_said else self._engine.key_trouble()
        if trouble:
            self._key_trouble_said = True
            text = "%s%s at %s %s: run every stage with the same --pipeline-curve-dir"
            _log.warning(text, self._who, self._previous, self._connect, trouble)

    def _say_device(self) -> None:
        """Once, when device memory was refused: why."""
        reason = "" if self._device_said else self._engine.lane_reason()
        if self._lane_is_open and reason.startswith(_NOT_BETWEEN_DEVICES):
            self._device_said = True
            text = "%sCUDA tensors go through shared memory, not from device to device: %s"
            _log.info(text, self._who, reason.removeprefix(_NOT_BETWEEN_DEVICES))


def named_stats(engine: _engine.Link, sending: str | None, receiving: str | None) -> dict[str, Any]:
    """The engine's counters as `Link.stats` describes them.

    Args:
        sending, receiving: the scheme of the half's socket; None: there is no such half.
    """
    counters: dict[str, Any] = engine.stats()
    for name in ("send_peer_connected", "receive_peer_connected"):
        counters[name] = bool(counters[name])
    for name in ("send_p50", "send_p99", "receive_p50", "receive_p99"):
        counters[f"{name}_us"] = counters.pop(f"{name}_ns") / 1000
    for name, socket in (("send_lane", sending), ("receive_lane", receiving)):
        counters[name] = (None, socket, "shm", "cuda_ipc")[counters[name]]
    lane = counters["send_lane" if sending else "receive_lane"]
    return {**counters, "lane": lane or sending or receiving, "lane_reason": engine.lane_reason()}
