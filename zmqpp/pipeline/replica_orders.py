"""Orders to several replicas: each gets its part, and what it tells goes to who asked, with its number.

Stages are replaced in one replica after another, so that the others take its requests; all are drained at once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from zmqpp.errors import ConfigError
from zmqpp.pipeline.orders import Drain, Entrance, Order, Orders, Restart
from zmqpp.pipeline.stage_name import one_of_replica

__all__ = ["JointEntrance", "ReplicaOrders"]

_END_S = 5.0


class JointEntrance:
    """The entrances of all replicas as one. Thread: any."""

    def __init__(self, entrances: Sequence[Entrance]) -> None:
        self._all = entrances

    @property
    def running(self) -> int:
        return sum(one.running for one in self._all)

    @property
    def draining(self) -> bool:
        return all(one.draining for one in self._all)

    def drain(self) -> None:
        for one in self._all:
            one.drain()

    def resume(self) -> None:
        for one in self._all:
            one.resume()

    def hold(self) -> None:
        for one in self._all:
            one.hold()

    def release(self) -> None:
        for one in self._all:
            one.release()


class ReplicaOrders(Orders):
    """Owns a thread while an order is under way. Thread: any.

    Args:
        each: the orders of every replica, by its number.
    """

    def __init__(self, each: Sequence[Orders]) -> None:
        super().__init__()
        self._each = each
        self.state = "ready"  # a replica that is not says so itself
        self._thread: threading.Thread | None = None

    def submit(self, order: Order) -> None:
        """Raises ConfigError: also when it names no stage of any replica."""
        parts = self._parts(order)
        super().submit(order)
        self._thread = threading.Thread(
            target=self._carry_out, args=(order, parts), name="zmqpp-replica-orders", daemon=True
        )
        self._thread.start()

    def close(self, reason: str) -> None:
        super().close(reason)
        for orders in self._each:
            orders.close(reason)  # else its part would never be told to be over
        if self._thread is not None:
            self._thread.join(_END_S)

    def _parts(self, order: Order) -> list[tuple[int, Order]]:
        if isinstance(order, Drain):
            return [(number, Drain(order.timeout_s)) for number in range(len(self._each))]
        if not isinstance(order, Restart):
            raise ConfigError(f"not an order for replicas: {type(order).__name__.lower()}")
        if order.stages is None:
            return [(number, self._restart(order, None)) for number in range(len(self._each))]
        parts: list[tuple[int, Order]] = []
        for name in order.stages:
            replica, stage = self._place(name)
            last = parts[-1][1] if parts and parts[-1][0] == replica else None
            if stage is not None and isinstance(last, Restart) and last.stages is not None:
                last.stages = [*last.stages, stage]
            else:
                parts.append((replica, self._restart(order, None if stage is None else [stage])))
        return parts

    def _restart(self, order: Restart, stages: list[int | str] | None) -> Restart:
        return Restart(stages, order.flags, order.environment, order.drain_s)

    def _place(self, name: int | str) -> tuple[int, int | None]:
        last = len(self._each) - 1
        if isinstance(name, int):
            raise ConfigError(
                f"--stage {name}: there are {last + 1} replicas; give 0.{name} to {last}.{name}, or all"
            )
        replica, stage = one_of_replica(name)
        if replica > last:
            raise ConfigError(f"--stage {name}: the replicas are 0 to {last}")
        return replica, stage

    def _carry_out(self, order: Order, parts: Sequence[tuple[int, Order]]) -> None:
        if isinstance(order, Drain):
            return self._drain(order, parts)
        for number, part in parts:
            if not self._give(order, number, part):
                return order.finish(1, f"replica {number} has ended, and was not restarted")
            code, line = self._follow(order, number, part)
            if code:
                return order.finish(code, line)
        order.finish(0)

    def _drain(self, order: Drain, parts: Sequence[tuple[int, Order]]) -> None:
        """None ends before all are drained."""
        given = [(number, part) for number, part in parts if self._give(order, number, part)]
        ends = [self._follow(order, number, part) for number, part in given]
        code = max((code for code, _ in ends), default=0)
        if not code and order.stop:
            lasts = [(number, Drain(order.timeout_s, stop=True)) for number, _ in given]
            ends = [self._follow(order, *one) for one in lasts if self._give(order, *one)]
            code = max((code for code, _ in ends), default=0)
        order.finish(code, "; ".join(line for one, line in ends if one))

    def _give(self, order: Order, number: int, part: Order) -> bool:
        """False, and told, where that replica takes none: it has failed."""
        try:
            self._each[number].submit(part)
        except ConfigError as error:
            order.say(f"replica {number}: {error}")
            return False
        return True

    def _follow(self, order: Order, number: int, part: Order) -> tuple[int, str]:
        """Exit code and last line of a part; the lines before, and the last where all is well, are told."""
        while True:
            line, code = part.told()
            told = f"replica {number}: {line}"
            if code:
                return code, told
            if line:
                order.say(told)
            if code == 0:
                return 0, told
