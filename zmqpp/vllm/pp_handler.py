"""In place of Model Runner V2's PPHandler: tokens come with the steps, over the ring, not by torch.distributed.

Nothing here waits: what a step brings is copied to the device on its main stream, from pinned memory; what the last
stage has sampled leaves with its output, which vLLM copies to the host anyway.

Thread: the stage's main thread. Source: PPHandler (vllm/v1/worker/gpu/pp_utils.py), whose methods these are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zmqpp.vllm import compat_v2
from zmqpp.vllm.drafted import Drafted
from zmqpp.vllm.token_slots import GIVEN_UP, Drawn, TokenSlots

if TYPE_CHECKING:
    from vllm.sequence import IntermediateTensors

__all__ = ["RingHandler", "replace_pp_handler"]


def replace_pp_handler(vocabulary: int, is_last: bool) -> None:
    """From now on runners of this process are built with ours; before the worker is.

    Args:
        vocabulary: of the model. is_last: this stage samples.
    Raises:
        UnsupportedError: this vLLM's Model Runner V2 is another than the one known here.
    """

    def make(max_num_reqs: int, num_speculative_steps: int, device: torch.device) -> RingHandler:
        return RingHandler(TokenSlots(max_num_reqs, vocabulary, num_speculative_steps), device, is_last)

    for module in compat_v2.modules():
        module.PPHandler = make  # type: ignore[attr-defined]


class RingHandler:
    """One stage's; vLLM's runner calls it.

    Args:
        slots: of the steps whose tokens are to come.
        device: of the runner's request state.
        is_last: the runner has the tokens itself.
    """

    def __init__(self, slots: TokenSlots, device: torch.device, is_last: bool) -> None:
        self.slots = slots
        self._device, self._is_last = device, is_last
        self._need: Callable[[Any], Any] = compat_v2.need_sampled_mask()
        self._counts: torch.Tensor | None = None
        self.drafted: Drafted | None = None
        """On the last stage: what was drafted after the step sampled last."""

    # ---- stages before the last --------------------------------------------------------------------------

    def get_prev_sampled_outputs(
        self, draft_tokens_to_update: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor] | None:
        """Tokens for the runner's request state, as `postprocess_sampled` takes them; n rows, -1: skip.

        `sampled_tokens` int64 [n, 1 + drafts], `num_sampled` and `num_rejected` int32 [n], `idx_mapping` int64 [n].
        """
        drawn = self.slots.drawn()
        if drawn is None:
            return None
        if draft_tokens_to_update is not None and drawn.drafts.size:
            self._upload_drafts(drawn, draft_tokens_to_update)
        return self._upload(drawn)

    def _upload_drafts(self, drawn: Drawn, to: torch.Tensor) -> None:
        """Their rows of `to` are what the last stage has in its own: the step says how many of them are computed."""
        kept = drawn.rows != GIVEN_UP
        rows, drafts = drawn.rows[kept], drawn.drafts[kept]
        flat = compat_v2.uploader()(np.concatenate((rows, drafts.ravel())), device=self._device)
        to[flat[: len(rows)]] = flat[len(rows) :].view(len(rows), -1)

    def _upload(self, drawn: Drawn) -> dict[str, torch.Tensor]:
        upload = compat_v2.uploader()
        count = len(drawn.rows)
        flat = upload(np.concatenate((drawn.rows, drawn.tokens.ravel())), device=self._device)
        rows, tokens = flat[:count], flat[count:].view(count, -1)
        sampled, rejected = upload(np.stack((drawn.counts, drawn.rejected)), device=self._device).unbind(0)
        return {
            "sampled_tokens": tokens,
            "num_sampled": sampled,
            "num_rejected": rejected,
            "idx_mapping": rows,
        }

    def receive(self, input_batch: Any) -> bool:
        """A step was computed: its tokens come later. True where every request of it draws one."""
        needed = self._need(input_batch)
        if needed is None:
            return False
        self.slots.keep(input_batch.req_ids, input_batch.idx_mapping_np, needed)
        return bool(needed.all())

    def on_req_idx_freed(self, req_idx: int) -> None:
        """The request at this row is gone."""
        self.slots.give_up(req_idx)

    # ---- the last stage ----------------------------------------------------------------------------------

    def broadcast(
        self,
        sampled_token_ids: torch.Tensor,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        input_batch: Any,
    ) -> None:
        """They are in the step's output."""
        self._counts = num_sampled

    def broadcast_drafts(self, draft_tokens: torch.Tensor, input_batch: Any) -> None:
        """Keep them for the step's reply; they are on their way to the host."""
        assert self._counts is not None, "drafts follow tokens"
        self.drafted = Drafted(input_batch.req_ids, draft_tokens[input_batch.idx_mapping], self._counts)

    # ---- Eagle's hidden states: refused before the worker is built ---------------------------------------

    def configure_aux_hidden_state_relay(self, model: torch.nn.Module) -> None:
        """Nothing to relay."""

    def relay_aux_hidden_states(
        self,
        intermediate_tensors: IntermediateTensors | None,
        output_intermediate_tensors: IntermediateTensors,
    ) -> IntermediateTensors:
        """The activations as they are."""
        return output_intermediate_tensors
