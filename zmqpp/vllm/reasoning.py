"""Which tokens begin and end thinking: stage 0 has them of its tokenizer, the stages, which have none, of stage 0."""

from __future__ import annotations

from typing import Any

__all__ = ["NAME", "given", "words"]

NAME = "reasoning_config"
_IDS = ("reasoning_start_token_ids", "reasoning_end_token_ids", "natural_reasoning_end_token_ids")


def words(config: Any) -> dict[str, list[int]] | None:
    """What vLLM has made of its ReasoningConfig; None: of none, and nobody can ask for a thinking budget."""
    if config is None or not config.enabled:
        return None
    return {name: [int(token) for token in getattr(config, name) or ()] for name in _IDS}


def given(told: dict[str, list[int]] | None) -> dict[str, Any]:
    """The fields of vLLM's EngineArgs for a stage that was `told` stage 0's words.

    How text is divided into thinking and answer is stage 0's matter alone.
    """
    config = None
    if told:
        from vllm.config.reasoning import ReasoningConfig

        config = ReasoningConfig()
        for name in _IDS:
            setattr(config, "_" + name, list(told[name]))
    return {NAME: config, "reasoning_parser": "", "reasoning_parser_plugin": ""}
