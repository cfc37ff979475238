"""Rank 0 of a stage with several tensor-parallel ranks: what it does, the others do with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zmqpp import control
from zmqpp.errors import ZmqppError
from zmqpp.layers import LayerRange
from zmqpp.vllm.calls import FORGET, RESTORE
from zmqpp.vllm.rank_group import LeadingGroup
from zmqpp.vllm.rank_words import Abandon, RankPlace
from zmqpp.vllm.restore import finish_sends
from zmqpp.vllm.step_checks import check_grammar
from zmqpp.vllm.weights import LoadReport
from zmqpp.vllm.worker import StageWorker
from zmqpp.watch.status import Memory

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from zmqpp.vllm.ranks import Ranks

__all__ = ["LeadingWorker"]


class LeadingWorker(StageWorker):
    """A StageWorker that tells `ranks` of everything first, and has their results beside its own.

    Each rank runs the same methods in the same order, or vLLM's collectives do not meet.
    """

    def __init__(
        self, config: VllmConfig, group: LeadingGroup, layers: LayerRange, place: RankPlace, ranks: Ranks
    ) -> None:
        super().__init__(config, group, layers, place)
        self._ranks = ranks

    def load(self) -> LoadReport:
        """Load on all ranks at once; what is reported of it is the sum."""
        self._ranks.assign(self.config, self.report.layers, self.place)
        report = super().load()
        for counts in self._ranks.answers():
            report.add(counts)
        return report

    def call(self, method: str, args: Any, kwargs: Any) -> list[Any]:
        """Run it on every rank; results in the order of ranks."""
        return self._together(lambda: self.own_call(method, args, kwargs), method, *args, **kwargs)

    def execute(self, step: control.Exec, scheduler_output: Any) -> Any:
        """Forward pass on all ranks; the link is this one's alone."""
        # A link that broke shows here, before the others wait in a collective that this rank would not come to.
        finish_sends(self.wrapper.worker)
        self._ranks.tell(step)
        try:
            return super().execute(step, scheduler_output)
        except ZmqppError:
            self._ranks.tell(Abandon(step.step))
            raise
        except Exception:
            self._ranks.check_after_error()
            raise

    def sample(self, grammar_output: Any, asked: control.Sample | None = None) -> Any:
        """Sample on all ranks, which all draw the same; without `asked` the others know by the step itself."""
        if grammar_output is not None:
            check_grammar(grammar_output, self._limits())
        if asked is not None:
            self._ranks.tell(asked)
        try:
            return super().sample(grammar_output)
        except ZmqppError:
            raise
        except Exception:
            self._ranks.check_after_error()
            raise

    def forget_requests(self) -> None:
        """On every rank."""
        self._together(super().forget_requests, FORGET)

    def restore(self, requests: list[Any], outputs: list[list[int]]) -> None:
        """On every rank."""
        check_restored_here = super().restore
        self._together(lambda: check_restored_here(requests, outputs), RESTORE, requests, outputs)

    def memory(self) -> Memory:
        """Of all processes; of the devices, this rank's, which the others' are like."""
        own = super().memory()
        own.resident_bytes += self._ranks.resident_bytes()
        return own

    def _together(self, own: Callable[[], Any], method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Ask the others, do it here, and hear them whatever came of it: the next answer is to the next question."""
        self._ranks.ask(method, *args, **kwargs)
        try:
            result = own()
        except Exception:
            self._hear_them_out()
            raise
        return [result, *self._ranks.answers()]

    def _hear_them_out(self) -> None:
        try:
            self._ranks.answers()
        except ZmqppError:
            pass  # The same happened there, and is told from here.
