"""The same questions to one vLLM process and to a pipeline, both as forks of the zygote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cases import LONG_PROMPT, PROMPTS
from tests.integration.zygote import Zygote
from zmqpp.pipeline.ports import free_base_port

OFFLINE = str(Path(__file__).with_name("offline.py"))
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "kv_cache_memory_bytes": 32 << 20,
    "disable_log_stats": True,
}
_GREEDY = {"temperature": 0, "max_tokens": 16, "ignore_eos": True, "logprobs": 3}
ASK: list[Any] = [
    *([{"prompt": prompt}, _GREEDY] for prompt in PROMPTS[:5]),
    [{"prompt": PROMPTS[5]}, {**_GREEDY, "prompt_logprobs": 2}],
    [{"prompt": PROMPTS[6]}, {**_GREEDY, "temperature": 0.9, "seed": 17}],
    [{"prompt": LONG_PROMPT[:900]}, _GREEDY],
]
"""More than a step holds, and a prompt of several chunks."""
_WITHIN = 2e-3
"""Float32 sums depend on how rows were batched; most of what is compared is equal to 1e-5."""


@dataclass(frozen=True)
class Found:
    """See offline.py."""

    answers: list[Any]
    metrics: dict[str, float]
    loads: list[dict[str, Any]]


def one_process(zygote: Zygote, folder: Path, model: Path, within_s: float = 120, **settings: Any) -> Found:
    """What one ordinary process answers; `settings` are of `LLM`, or `ask` or `pool` (see offline.py)."""
    return _ask(zygote, folder / "alone.json", model, within_s, settings)


def stages(
    zygote: Zygote,
    folder: Path,
    models: Sequence[Path],
    within_s: float = 120,
    ranges: Sequence[str] = (),
    flags: Sequence[Sequence[str]] = (),
    **settings: Any,
) -> Found:
    """What a pipeline of one stage a model answers; `flags`: of `vllm serve`, for stages 1 and up."""
    total, port = len(models), free_base_port(len(models) + 1)
    others = [
        zygote.start(_later(index, total, port, models[index], ranges, flags)) for index in range(1, total)
    ]
    place = {
        "stage_idx": 0,
        "total_stages": total,
        "local_bind_port": str(port),
        "prev_stage_addr": f"127.0.0.1:{port + total}",
        **({"layer_range": ranges[0]} if ranges else {}),
    }
    settings["additional_config"] = {"zmqpp": place}
    try:
        answers = _ask(zygote, folder / "stages.json", models[0], within_s, settings)
    except AssertionError as error:
        logs = "\n\n".join(f"stage {i}: {other.log.read_text()[-2500:]}" for i, other in enumerate(others, 1))
        raise AssertionError(f"{error}\n\n{logs}") from None
    for other in others:
        ended = other.wait(20)
        assert ended.code == 0, ended.output[-3000:]
    return answers


def _later(
    index: int, total: int, port: int, model: Path, ranges: Sequence[str], flags: Sequence[Sequence[str]]
) -> list[str]:
    words = ["serve", str(model), "--pipeline-stage-mode", "external", "--external-pp-worker"]
    words += ["--pipeline-stage-idx", str(index), "--pipeline-total-stages", str(total)]
    words += ["--pipeline-local-bind-port", str(port + (total if index == total - 1 else index))]
    words += ["--pipeline-prev-stage-service-addr", f"127.0.0.1:{port + index - 1}"]
    words += ["--pipeline-layer-range", ranges[index]] if ranges else []
    return [*words, *(flags[index - 1] if flags else ())]


def _ask(zygote: Zygote, answer: Path, model: Path, within_s: float, settings: dict[str, Any]) -> Found:
    asked = {"pool": settings.pop("pool")} if "pool" in settings else {"ask": settings.pop("ask", ASK)}
    task = {"model": str(model), "settings": {**SETTINGS, **settings}, **asked}
    answer.parent.mkdir(parents=True, exist_ok=True)
    answer.unlink(missing_ok=True)
    written = answer.with_suffix(".task")
    written.write_text(json.dumps(task))
    ended = zygote.run([OFFLINE, str(written), str(answer)], within_s=within_s)
    assert ended.code == 0 and answer.exists(), f"{ended.code}: {ended.output[-4000:]}"
    return Found(**json.loads(answer.read_text()))


def assert_same(here: Found, there: Found, within: float = _WITHIN) -> None:
    """Tokens are equal, logprobs nearly; what is compared is not the same everywhere."""
    found, expected = here.answers, there.answers
    assert len({str(one["tokens"]) for one in expected}) > len(expected) // 2, "it says the same to all"
    assert [one["tokens"] for one in found] == [one["tokens"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        for kind in ("logprobs", "prompt_logprobs"):
            assert len(one[kind]) == len(other[kind])
            for mine, theirs in zip(one[kind], other[kind], strict=True):
                both = mine.keys() & theirs.keys()
                assert both and {token: mine[token] for token in both} == pytest.approx(
                    {token: theirs[token] for token in both}, abs=within
                )
