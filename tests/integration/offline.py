"""A fork of the zygote runs this: vLLM's offline `LLM` on one model; what it answers goes to a file.

    offline.py TASK.json ANSWER.json

The task is {"model", "settings" of LLM, "ask": [[{"prompt" or "prompt_token_ids"}, settings of SamplingParams], ..],
"embed": [text, ..]}. The answer is a list: of token ids and their logprobs, or of vectors.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    # The engine runs in this process: one less that imports vLLM anew.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    task = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(task["model"], **task["settings"])
    answers = vectors(llm, task["embed"]) if "embed" in task else completions(llm, task["ask"])
    part = Path(f"{sys.argv[2]}.part")
    part.write_text(json.dumps(answers))
    part.rename(sys.argv[2])
    llm.llm_engine.engine_core.shutdown()


def completions(llm: Any, ask: list[Any]) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    prompts, settings = [one[0] for one in ask], [SamplingParams(**one[1]) for one in ask]
    found = llm.generate(prompts, settings, use_tqdm=False)
    return [
        {
            "tokens": list(one.outputs[0].token_ids),
            "logprobs": [by_token(at) for at in one.outputs[0].logprobs or ()],
            "prompt_logprobs": [by_token(at) for at in (one.prompt_logprobs or ()) if at],
        }
        for one in found
    ]


def by_token(at: Any) -> dict[int, float]:
    return {token: entry.logprob for token, entry in at.items()}


def vectors(llm: Any, texts: list[str]) -> list[list[float]]:
    found = llm.encode(texts, pooling_task=None, use_tqdm=False)
    return [one.outputs.data.tolist() for one in found]


if __name__ == "__main__":
    main()
