"""Which replica a request goes to: the one with the fewest outstanding requests, of equal ones each in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from zmqpp.gateway.adapters import Adapters
from zmqpp.gateway.replica import HELD, READY, WAITS, Replica

__all__ = ["Choice"]

_LOOK_S = 0.2


class Choice:
    """Thread: the gateway's loop.

    Args:
        replicas: one or more.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas, self.adapters = replicas, Adapters(replicas)
        self._last = len(replicas) - 1
        # Counted here, and not at their entrances, where they arrive a moment later.
        self._taken = [0] * len(replicas)
        self._ready: list[bool] = []
        self._looked_at = 0.0

    @property
    def are_several(self) -> bool:
        return len(self.replicas) > 1

    def take(self, tried: Collection[Replica] = ()) -> Replica:
        """The best one; of those not tried, while there are such. `leave` follows."""
        left = [replica for replica in self.replicas if replica not in tried] or list(self.replicas)
        chosen = min(left, key=self._cost) if len(left) > 1 else left[0]
        self._last = chosen.number
        self._taken[chosen.number] += 1
        return chosen

    def _cost(self, replica: Replica) -> tuple[int, int, int]:
        turn = (replica.number - self._last - 1) % len(self.replicas)
        return self._rank(replica), self._taken[replica.number], turn

    def _rank(self, replica: Replica) -> int:
        rank = replica.rank()
        return HELD if rank < HELD and self.adapters.lacks(replica) else rank

    def leave(self, replica: Replica) -> None:
        """The request has its answer, or goes elsewhere."""
        self._taken[replica.number] -= 1

    def has_another(self, tried: Collection[Replica], rank: int = WAITS) -> bool:
        """Whether one that was not tried takes requests, of this rank at least."""
        return any(self._rank(one) <= rank for one in self.replicas if one not in tried)

    async def until_elsewhere_is_better(self, replica: Replica, tried: Collection[Replica]) -> None:
        """Returns when this replica has lost something, and another one has not.

        Never where a stage failed by itself: a request that makes stages fail would go through all replicas.
        """
        while True:
            await asyncio.sleep(_LOOK_S)
            lost = not self._all_ready()[replica.number] and replica.source.lost_from_outside
            if lost and self.has_another([replica, *tried], READY):
                return

    def _all_ready(self) -> list[bool]:
        """Of each, whether its pipeline is; looked up once for all requests that wait."""
        now = asyncio.get_running_loop().time()
        if not self._ready or now - self._looked_at > _LOOK_S / 2:
            self._ready = [one.source.status().state == "ready" for one in self.replicas]
            self._looked_at = now
        return self._ready
