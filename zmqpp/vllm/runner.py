"""What vLLM's two model runners want done differently on a stage.

    V1  its scheduler tells the stages before the last one the tokens; requests are put back after a loss
    V2  tokens come with the steps (`feedback.py`); requests that go on come as new ones, with what they have generated

Thread: the stage's main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from vllm.v1.core.sched.output import SchedulerOutput

from zmqpp import control
from zmqpp._shown import shown
from zmqpp.errors import MalformedError
from zmqpp.vllm import restore
from zmqpp.vllm.accepted import AcceptedDrafts
from zmqpp.vllm.generators import make_rewindable
from zmqpp.vllm.group import PipelineGroup
from zmqpp.vllm.pp_handler import replace_pp_handler
from zmqpp.vllm.thinking import keep_thinking

__all__ = ["RunnerV1", "RunnerV2", "runner_for"]


def runner_for(config: Any, wrapper: Any, group: PipelineGroup) -> RunnerV1 | RunnerV2:
    """The runner of vLLM's `config`, which `wrapper`, vLLM's WorkerWrapperBase, is going to build."""
    return (RunnerV2 if config.use_v2_model_runner else RunnerV1)(config, wrapper, group)


class RunnerV1:
    """Model Runner V1 of one worker.

    Args:
        config: vLLM's. wrapper: vLLM's worker, not built yet. group: the pipeline.
    """

    defers_output = False
    """What the last stage samples is on its way to the host when it says so."""

    def __init__(self, config: Any, wrapper: Any, group: PipelineGroup) -> None:
        self._config, self._wrapper, self._group = config, wrapper, group
        self._accepted = self._no_drafts()

    @property
    def vllms(self) -> Any:
        """vLLM's own object, once the worker is built."""
        return self._wrapper.worker.model_runner

    @property
    def known(self) -> Container[str]:
        """Ids of the requests that it was sent."""
        known: Container[str] = self.vllms.requests
        return known

    def install(self) -> None:
        """Before the worker is built: replace what is not ours to wait for, or does not know of several batches."""
        if self._group.is_last_rank:
            keep_thinking()

    def prepare(self) -> None:
        """After the model is loaded: what vLLM leaves to steps that some platforms skip."""
        runner = self.vllms
        if self._config.speculative_config is not None and not hasattr(runner, "drafter"):
            runner.drafter = None  # only the last stage's has one, but from here on vLLM asks all for it
        self._allocate_intermediate_tensors()
        if self._group.device.type == "cpu" and self._group.is_last_rank:
            make_rewindable(runner)

    def _allocate_intermediate_tensors(self) -> None:
        """V1 allocates them only in its dummy run, which CPU skips in eager mode or with an explicit KV size."""
        runner = self.vllms
        if self._group.is_first_rank or getattr(runner, "intermediate_tensors", None) is not None:
            return
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=self._config.model_config.dtype, device=runner.device
        )

    def check(self, scheduled: SchedulerOutput) -> None:
        """Raises MalformedError: a step that this runner cannot run, though the other could."""

    def execute(self, step: control.Exec, scheduled: SchedulerOutput) -> Any:
        """Forward pass of a step; what vLLM's worker gives for it."""
        if self._accepted is not None:
            self._accepted.catch_up(self.vllms, scheduled)
        return self._wrapper.execute_model(scheduled)

    def _no_drafts(self) -> AcceptedDrafts | None:
        drafts = self._config.speculative_config is not None and not self._group.is_last_rank
        return AcceptedDrafts() if drafts else None

    def drafts(self) -> Callable[[], Any]:
        """What the last stage drafted after the step that it has just sampled.

        Gives vLLM's DraftTokenIds or None, once they are on the host; any thread.
        """
        drafts = self._wrapper.worker.take_draft_token_ids()
        return lambda: drafts

    def forget(self) -> None:
        """Let go of every request, and of whatever a step that was cut off has left behind."""
        self._accepted = self._no_drafts()
        restore.forget(self._wrapper.worker)

    def restore(self, requests: Sequence[Any], outputs: Sequence[Sequence[int]]) -> None:
        """Make `requests`, which have generated `outputs`, known again after `forget`."""
        restore.restore(self._wrapper.worker, requests, outputs, samples=self._group.is_last_rank)


class RunnerV2(RunnerV1):
    """Model Runner V2 of one worker."""

    @property
    def known(self) -> Container[str]:
        """Ids of the requests that have a row in its state."""
        known: Container[str] = self.vllms.req_states.req_id_to_index
        return known

    @property
    def defers_output(self) -> bool:  # type: ignore[override]
        """With async scheduling, as vLLM's own executor has it."""
        return bool(self._config.scheduler_config.async_scheduling)

    def install(self) -> None:
        """Tokens come over the ring. Raises UnsupportedError: this vLLM's V2 is not known here."""
        replace_pp_handler(self._config.model_config.get_vocab_size(), self._group.is_last_rank)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Activations are defined before there are any: vLLM warms up with them as they are."""
        if self.vllms.intermediate_tensors is not None:
            for activation in self.vllms.intermediate_tensors.tensors.values():
                activation.zero_()

    def check(self, scheduled: SchedulerOutput) -> None:
        """Raises MalformedError: a new request without the tokens that it starts from, or too many drafts."""
        for request in scheduled.scheduled_new_reqs:
            if request.prefill_token_ids is None:
                raise MalformedError(
                    f"a step from stage 0 has no tokens of the request {shown(request.req_id)}"
                )
        most = self.vllms.num_speculative_steps
        for name, drafts in scheduled.scheduled_spec_decode_tokens.items():
            if not len(drafts) < scheduled.num_scheduled_tokens[name] or len(drafts) > most:
                raise MalformedError(
                    f"a step from stage 0 has {len(drafts)} drafts of the request {shown(name)}, "
                    f"of {scheduled.num_scheduled_tokens[name]} tokens; {most} at most"
                )

    def execute(self, step: control.Exec, scheduled: SchedulerOutput) -> Any:
        """Forward pass of a step; before the last stage it also ends there."""
        slots, computed = self.vllms.pp_handler.slots, scheduled.scheduled_spec_decode_tokens
        slots.begin(step.step, list(scheduled.num_scheduled_tokens), step.sampled, computed)
        output = self._wrapper.execute_model(scheduled)
        if step.tokens and not self._group.is_last_rank:
            self._wrapper.sample_tokens(None)
        return output

    def drafts(self) -> Callable[[], Any]:
        """They are with the pipeline's handler: of most requests vLLM has placeholders only here."""
        drafted = self.vllms.pp_handler.drafted
        return drafted.read if drafted is not None else lambda: None

    @torch.inference_mode()
    def forget(self) -> None:
        """Let go of every request, and of the tokens of steps that were cut off."""
        worker, runner = self._wrapper.worker, self.vllms
        worker._pp_send_work = []  # what it waits for was lost with its link
        runner.execute_model_state = None
        runner.reset_encoder_cache()
        runner.pp_handler.slots.forget()
        runner.pp_handler.drafted = None
        finished = SchedulerOutput.make_empty()
        finished.finished_req_ids = set(runner.req_states.req_id_to_index)
        runner.finish_requests(finished)

    def restore(self, requests: Sequence[Any], outputs: Sequence[Sequence[int]]) -> None:
        """Nothing: vLLM's scheduler sends them as new requests."""
