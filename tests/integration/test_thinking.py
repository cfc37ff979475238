"""Thinking budgets: stages have no tokenizer, several batches are in flight, and thinking ends as in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.integration.cases import PROMPTS
from tests.integration.serving import FLAGS, long_only, one_process, pipeline
from tests.integration.zygote import Zygote

PHRASE = " so it is done now."
THINKS = (
    *FLAGS,
    *("--reasoning-config", json.dumps({"reasoning_start_str": "(", "reasoning_end_str": PHRASE})),
)
CASES: dict[str, dict[str, Any]] = {
    f"{budget} tokens, {kind}: {prompt}": {
        **{"prompt": prompt + opened, "max_tokens": 24, "temperature": 0, "seed": 3, **sampled},
        **({} if budget is None else {"thinking_token_budget": budget}),
    }
    for budget in (None, 0, 3, 8)
    for prompt, opened in (("The sorted() function returns a new (list", ""), (PROMPTS[1], "("))
    for kind, sampled in (("greedy", {}), ("sampled", {"temperature": 0.8}))
}


@long_only
def test_thinking_ends_as_in_one_process(imported: Zygote, tmp_path: Path) -> None:
    with one_process(tmp_path / "vllm.log", flags=THINKS, zygote=imported) as vllm:
        expected = vllm.answers(CASES)
    assert sum(PHRASE in answer[0]["text"] for answer in expected.values()) > len(CASES) / 4
    with pipeline(tmp_path / "logs", 2, flags=THINKS, zygote=imported) as served:
        assert served.answers(CASES, at_once=len(CASES)) == expected
