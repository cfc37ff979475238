"""What the user means to run: how many stages, on which machines and ports, and which of them here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from zmqpp.pipeline.hosts import LOOPBACK, RingPlace, ring_places
from zmqpp.pipeline.own_address import address_doubt

__all__ = ["Deployment"]


@dataclass(frozen=True)
class Deployment:
    """`hosts` is empty when all stages run here."""

    stages: int
    base_port: int
    api_port: int
    hosts: Sequence[str] = ()

    @cached_property
    def places(self) -> list[RingPlace]:
        """Where each stage binds."""
        return ring_places(self.hosts or [LOOPBACK] * self.stages, self.base_port)

    @cached_property
    def here(self) -> list[int]:
        """Stages of this machine."""
        mine = {place.host for place in self.places if not address_doubt(place.host)}
        return [index for index, place in enumerate(self.places) if place.host in mine]

    @property
    def links_here(self) -> list[int]:
        """Stages of this machine that hand tensors to a stage of this machine."""
        return [index for index in self.here if index + 1 in self.here]
