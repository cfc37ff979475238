"""Runs faults for so long, and says what came of it."""

from __future__ import annotations

import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence

from tests.chaos.faults import Faults, Outcome
from tests.chaos.load import Load
from tests.chaos.pipeline import Keeper

_CALM_S = 4.0


class Summary:
    """What was done to a pipeline, and how it went on."""

    def __init__(self, minutes: float, stages: int, clients: int, seed: int) -> None:
        self.outcomes: list[Outcome] = []
        self.trouble = ""
        """Why it ended early."""
        self._minutes = minutes
        self._title = f"{minutes:g} minutes, {stages} stages, {clients} clients, seed {seed}"

    def run(self, faults: Faults, dice: random.Random, keeper: Keeper, load: Load) -> None:
        """Faults one after another, with a little calm between them."""
        end = time.monotonic() + 60 * self._minutes
        while time.monotonic() < end and not (self.trouble or load.has_stopped):
            time.sleep(dice.uniform(0.0, _CALM_S))
            try:
                outcome = faults.one()
            except TimeoutError as error:
                self.trouble = keeper.failure or str(error)
                return
            self.outcomes.append(outcome)
            self.trouble = keeper.failure
            print(f"chaos: {outcome}", flush=True)

    def text(self, load: Load, keeper: Keeper) -> str:
        """Some lines, as `docs/recovery.md` has them."""
        kinds = Counter(_kind(outcome.fault) for outcome in self.outcomes)
        whole = [o.recovery_s for o in self.outcomes if o.recovery_s is not None]
        beyond = [o.beyond_start_s for o in self.outcomes if o.beyond_start_s is not None]
        counts = load.counts
        answered = counts["whole"] + counts["stream"]
        lines = [
            f"chaos: {self._title}",
            f"faults injected        {len(self.outcomes)}, {keeper.restarts} processes started again",
            *(f"  {count:4d} x {kind}" for kind, count in kinds.most_common()),
            f"requests answered      {answered} ({counts['stream']} of them streamed), {counts['hung up']} hung up on",
            f"while stage 0 was down {counts['cut off with stage 0']} broken or refused connections",
            f"lost                   {counts['lost']}",
            f"wrong                  {counts['wrong']}",
            f"recovery               {_spread(whole)} from the fault, process start included",
            f"recovery beyond start  {_spread(beyond)} after the new process was up",
            f"answer                 {_spread(load.seconds)}",
        ]
        return "\n".join([*lines, *([f"ended early: {self.trouble}"] if self.trouble else [])])


def _kind(fault: str) -> str:
    """Without the numbers of this one."""
    anywhere = re.sub(r"(stages?|,) [1-9]\d*( and \d+)?|(behind stage) 0", r"\1\3 I", fault)
    return re.sub(r" for [\d.]+ s", "", anywhere)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "none"
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"p50 {statistics.median(ordered):.2f} s, p99 {p99:.2f} s"
