"""Control messages of a link, and how far they go."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Control", "Relay", "Route"]


class Relay(enum.IntEnum):
    """What a link passes on to the next place by itself, before and without Python.

    A REQUEST goes down the ring, a REPLY goes back to the engine unopened, a NOTICE is read by all it passes.
    """

    NONE = 0
    """Nothing: everything is delivered here."""
    FORWARD = 1
    """REQUEST and NOTICE are passed on and delivered, REPLY is passed on only."""
    RETURN = 2
    """The last stage: as FORWARD, but REQUEST ends here."""


class Route(enum.IntEnum):
    """How far a control message travels; LINK ends at the next place, whatever its relay."""

    LINK = 0
    REQUEST = 1
    REPLY = 2
    NOTICE = 3


@dataclass(frozen=True, slots=True)
class Control:
    """One received control message."""

    body: bytes
    route: Route
    tag: int
    epoch: int
