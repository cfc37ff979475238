"""Which tensors a stage needs: its layers, and of the rest what vLLM builds there.

Most of vLLM's models build the embeddings on the first stage, and the final norm and the head on the last. The others
build some or all of them on every stage, and refuse to load without: those, and models not known here, get everything
outside the layers on every stage. Too much on a stage costs disk; too little, and it does not start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.header import TensorEntry
from zmqpp.checkpoint.names import Role
from zmqpp.layers import LayerRange

_ALL_PLACED = frozenset({Role.EMBEDDING, Role.FINAL_NORM, Role.HEAD})
_END_PLACED = frozenset({Role.FINAL_NORM, Role.HEAD})

# Architecture -> roles that vLLM builds only where they are used.
# Source: the models' __init__ in vllm/model_executor/models, get_pp_group().is_first_rank and is_last_rank;
# tests/contract/test_vllm_placement.py compares.
PLACED: Mapping[str, frozenset[Role]] = {
    **dict.fromkeys(
        (
            *("AfmoeForCausalLM", "ApertusForCausalLM", "DeepseekForCausalLM", "DeepseekV2ForCausalLM"),
            *("DeepseekV3ForCausalLM", "Ernie4_5ForCausalLM", "Ernie4_5_MoeForCausalLM", "ExaoneForCausalLM"),
            *("Exaone4ForCausalLM", "Glm4MoeForCausalLM", "GraniteForCausalLM", "LlamaForCausalLM"),
            *("MiMoV2FlashForCausalLM", "MiniMaxM2ForCausalLM", "MistralForCausalLM", "NemotronForCausalLM"),
            *("Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SolarForCausalLM"),
        ),
        _ALL_PLACED,
    ),
    **dict.fromkeys(("Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Qwen3_5ForCausalLM"), _END_PLACED),
    "Qwen3NextForCausalLM": frozenset({Role.FINAL_NORM}),
}


def stage_tensors(checkpoint: Checkpoint, ranges: Sequence[LayerRange], stage: int) -> list[TensorEntry]:
    """The tensors of one stage, in the checkpoint's order; all stages together have all of them.

    Args:
        checkpoint: the model.
        ranges: of all stages, contiguous from layer 0.
        stage: 0 <= stage < len(ranges).
    """
    layers, is_first, is_last = ranges[stage], stage == 0, stage == len(ranges) - 1
    chosen = []
    for name, entry in checkpoint.tensors.items():
        layer = checkpoint.layers.get(name)
        if layer is None:
            wanted = _is_on(checkpoint, checkpoint.roles[name], is_first, is_last)
        else:  # Layers behind the last one predict further tokens; they stay with it.
            wanted = layers.start <= layer < layers.end or (is_last and layer >= layers.end)
        if wanted:
            chosen.append(entry)
    return chosen


def _is_on(checkpoint: Checkpoint, role: Role, is_first: bool, is_last: bool) -> bool:
    if role not in PLACED.get(checkpoint.architecture, frozenset()):
        return True
    if role is Role.EMBEDDING:
        return is_first or (is_last and checkpoint.tied)
    return is_last
