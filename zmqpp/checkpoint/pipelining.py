"""Models that vLLM cannot split over stages: said before anything is exported or loaded, where there is no vLLM too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zmqpp.checkpoint.config import text_config
from zmqpp.errors import UnsupportedError

__all__ = ["HEAD_ON_EVERY_STAGE", "NOT_PIPELINED", "cannot_split", "check_pipelined", "why_not_pipelined"]

# Source: the classes of vllm/model_executor/models without SupportsPP, by their names in registry.py;
# tests/contract/test_vllm_pipelining.py compares. Draft models are left out: nobody serves one.
NOT_PIPELINED = frozenset(
    (
        # generating
        *("Gemma3nForCausalLM", "HrmTextForCausalLM", "IQuestLoopCoderForCausalLM", "Mamba2ForCausalLM"),
        "Zamba2ForCausalLM",
        # generating, with images or sound
        *("AriaForConditionalGeneration", "CohereAsrForConditionalGeneration"),
        *("DiffusionGemmaForBlockDiffusion", "FireRedASR2ForConditionalGeneration"),
        *("FunASRForConditionalGeneration", "Gemma3nForConditionalGeneration"),
        *("Idefics3ForConditionalGeneration", "NemotronH_Nano_Omni_Reasoning_V3", "NemotronH_Nano_VL_V2"),
        *("NemotronH_Omni_Reasoning_V3", "NemotronH_Super_Omni_Reasoning_V3"),
        *("NemotronParseForConditionalGeneration", "PaddleOCRVLForConditionalGeneration"),
        *("Phi4MMForCausalLM", "SmolVLMForConditionalGeneration", "WhisperForConditionalGeneration"),
        # embeddings
        *("BertForMaskedLM", "BertModel", "BertSpladeSparseEmbeddingModel", "BgeM3EmbeddingModel"),
        *("CLIPModel", "ColBERTJinaRobertaModel", "ColBERTLfm2Model", "ColBERTModernBertModel"),
        *("ColModernVBertForRetrieval", "EmbeddingGemma2Model", "Gemma3TextModel", "GteModel"),
        *("GteNewModel", "HF_ColBERT", "JinaForRanking", "ModernBertModel", "NomicBertModel"),
        *("RobertaForMaskedLM", "RobertaModel", "SiglipModel", "Terratorch"),
        *("VoyageQwen3BidirectionalEmbedModel", "XLMRobertaModel"),
        # classification
        *("BertForSequenceClassification", "BertForTokenClassification", "GPT2ForSequenceClassification"),
        *("GteNewForSequenceClassification", "ModernBertForSequenceClassification"),
        *("ModernBertForTokenClassification", "OpenAIPrivacyFilterForTokenClassification"),
        *("RobertaForSequenceClassification", "RobertaForTokenClassification"),
        *("XLMRobertaForSequenceClassification", "XLMRobertaForTokenClassification"),
    )
)
"""Architectures, as config.json has them."""

HEAD_ON_EVERY_STAGE = frozenset(
    ("InternLM2ForRewardModel", "Qwen2ForProcessRewardModel", "Qwen2ForRewardModel")
)
"""Their classes implement SupportsPP, but `forward` goes on with what any stage gives as if it were the last."""

_OTHER_CLASS = ("--model-impl", "--hf-overrides")
"""With these vLLM may choose another class for the model, and judges by itself."""


def why_not_pipelined(config: Mapping[str, Any]) -> str | None:
    """Why vLLM cannot split the model of this config.json, and what to do; None where it may be able to."""
    named = config.get("architectures")
    name = str(named[0])[:80] if isinstance(named, list) and named else "this model"
    if name in NOT_PIPELINED:
        reason = "its class there does not implement SupportsPP"
    elif name in HEAD_ON_EVERY_STAGE:
        reason = "its class there puts the reward head behind every stage, not behind the last one alone"
    elif text_config(dict(config)).get("is_encoder_decoder") is True:
        reason = "it has an encoder and a decoder, and vLLM pipelines decoders alone"
    else:
        return None
    return cannot_split(name, reason)


def cannot_split(name: str, reason: str) -> str:
    """That vLLM cannot split a model of this class, why, and what to do."""
    return f"vLLM cannot split {name} over pipeline stages: {reason}; serve it in one process, with plain `vllm serve`"


def check_pipelined(config: Mapping[str, Any], model: str, vllm_flags: Sequence[str] = ()) -> None:
    """Raise UnsupportedError when vLLM is known not to split this model.

    Args:
        config: its config.json; empty for a name that is looked up elsewhere.
        vllm_flags: what `vllm serve` is given beside it.
    """
    if any(word.partition("=")[0] in _OTHER_CLASS for word in vllm_flags):
        return
    if (reason := why_not_pipelined(config)) is not None:
        raise UnsupportedError(f"{model}: {reason}")
