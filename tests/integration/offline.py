"""A fork of the zygote runs this: vLLM's offline `LLM` on one model; what it answers goes to a file.

    offline.py TASK.json ANSWER.json

The task is {"model", "settings" of LLM, "ask": [[{"prompt"}, settings of SamplingParams], ..]}, or in place of "ask"
"pool": [pooling task, [text, ..]]. The answer is {"answers": token ids and their logprobs, or vectors; "metrics": what
vLLM counted; "loads": what each stage has read}.
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
    answers = vectors(llm, *task["pool"]) if "pool" in task else completions(llm, task["ask"])
    core = llm.llm_engine.engine_core
    executor = core.engine_core.model_executor
    found = {"answers": answers, "metrics": counted(llm), "loads": getattr(executor, "load_reports", [])}
    part = Path(f"{sys.argv[2]}.part")
    part.write_text(json.dumps(found))
    part.rename(sys.argv[2])
    core.shutdown()


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


def counted(llm: Any) -> dict[str, float]:
    """Counters and gauges by name; none unless `disable_log_stats` is off."""
    if llm.llm_engine.logger_manager is None:
        return {}
    return {one.name: one.value for one in llm.get_metrics() if hasattr(one, "value")}


def by_token(at: Any) -> dict[int, float]:
    return {token: entry.logprob for token, entry in at.items()}


def vectors(llm: Any, task: str, texts: list[str]) -> list[list[float]]:
    found = llm.encode(texts, pooling_task=task, use_tqdm=False)
    return [one.outputs.data.tolist() for one in found]


if __name__ == "__main__":
    main()
