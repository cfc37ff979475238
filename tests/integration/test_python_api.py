"""Stage 0 from Python: `LLM(...)` and `AsyncLLM`, with the other stages started as ever; exported directories too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cases import CASES
from tests.integration.models import split
from tests.integration.serving import ENVIRONMENT, long_only, pipeline
from tests.integration.test_mistakes import stage
from tests.integration.zygote import Zygote
from zmqpp.models import docs_llama
from zmqpp.pipeline.ports import free_base_port

PROMPTS = [CASES[f"greedy {i}"]["prompt"] for i in range(6)]

COMMON = """
import asyncio, json, sys
from vllm import SamplingParams
from zmqpp.vllm import StageOptions

model, port, prompts = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
place = StageOptions(0, 2, str(port), prev_stage_addr=f"127.0.0.1:{port + 2}")
settings = dict(dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=32, block_size=32,
                max_num_batched_tokens=256, kv_cache_memory_bytes=128 << 20)
greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
"""

WITH_LLM = """
from vllm import LLM

if __name__ == "__main__":
    llm = LLM(model, **settings, **place.engine_args())
    texts = [output.outputs[0].text for output in llm.generate(prompts, greedy, use_tqdm=False)]
    print("ANSWER " + json.dumps(texts))
    del llm
"""

WITH_DICT = """
from vllm import LLM

if __name__ == "__main__":
    given = {"stage_idx": 0, "total_stages": 2, "local_bind_port": port, "prev_stage_addr": f"127.0.0.1:{port + 2}"}
    llm = LLM(model, **settings, additional_config={"zmqpp": given})
    texts = [output.outputs[0].text for output in llm.generate(prompts, greedy, use_tqdm=False)]
    print("ANSWER " + json.dumps(texts))
    del llm
"""

WITH_ASYNC_LLM = """
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

async def last(engine, i, prompt):
    async for output in engine.generate(prompt, greedy, request_id=str(i)):
        text = output.outputs[0].text
    return text

async def main():
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model, **settings, **place.engine_args()))
    texts = await asyncio.gather(*(last(engine, i, prompt) for i, prompt in enumerate(prompts)))
    print("ANSWER " + json.dumps(texts))
    engine.shutdown()

if __name__ == "__main__":
    asyncio.run(main())
"""


@contextmanager
def second_stage(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        str(docs_llama()),
        *stage(1, 2, port),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(script: Path, arguments: Sequence[str], environment: dict[str, str]) -> str:
    result = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return next(line for line in result.stdout.splitlines() if line.startswith("ANSWER ")).removeprefix(
        "ANSWER "
    )


@pytest.mark.parametrize(
    ("script", "environment"),
    [
        (WITH_LLM, {}),
        pytest.param(WITH_DICT, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, marks=long_only),
        pytest.param(WITH_ASYNC_LLM, {}, marks=long_only),  # what `vllm serve` is made of
    ],
    ids=["LLM", "LLM in one process with its engine, from a dict", "AsyncLLM"],
)
def test_stage_0_from_python_gives_the_same_answers(
    script: str, environment: dict[str, str], expected: dict[str, Any], tmp_path: Path
) -> None:
    port = free_base_port(3)
    path = tmp_path / "first.py"
    path.write_text(COMMON + script)
    with second_stage(port, tmp_path / "second.log") as second:
        answer = run(path, [str(docs_llama()), str(port), json.dumps(PROMPTS)], environment)
        assert second.wait(20) == 0, (tmp_path / "second.log").read_text()[-2000:]
    assert json.loads(answer) == [expected[f"greedy {i}"][0]["text"] for i in range(6)]


def test_exported_directories_need_no_range_and_no_tokenizer(
    expected: dict[str, Any], zygote: Zygote, tmp_path: Path
) -> None:
    folders = split(docs_llama(), tmp_path, [(0, 3), (3, 8)])
    assert (folders[0] / "tokenizer.json").exists() and not list(folders[1].glob("tokenizer*"))
    some = {name: CASES[name] for name in ("greedy 0", "greedy 1", "seeded", "long prompt")}
    with pipeline(tmp_path / "logs", 2, models=folders, zygote=zygote) as served:
        assert served.answers(some) == {name: expected[name] for name in some}
    log = (tmp_path / "logs" / "stage_1.log").read_text()
    assert "stage 1: layers 3-8 of 8" in log
