"""A pipeline whose stages pack what they send answers nearly as one that does not, over fewer bytes."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx

from tests.integration.cases import PROMPTS
from tests.integration.serving import FLAGS, long_only, pipeline

_HIDDEN_BYTES = 192 * 4 * 2
"""Of a token, in float32: what the next stage adds to, and the residual."""


@long_only
def test_two_stages_with_packed_hidden_states_answer(tmp_path: Path) -> None:
    flags = (*FLAGS, "--pipeline-compression", "int8")
    prompt = " ".join(PROMPTS)
    with pipeline(tmp_path / "logs", 2, flags=flags) as served:
        ready = (tmp_path / "logs" / "stage_0.log").read_text()
        assert re.search(r"stage 0: ready, \w+ to stage 1, as int8", ready), ready[-1500:]
        answer = served.complete({"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True})
        moved = _sent(served.url, steps=8)
    tokens = answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 8 and 100 < tokens < 256
    # A quarter, and what goes with it: start-up, the prompt itself, the other steps, which are too small to be packed.
    assert moved < 0.6 * tokens * _HIDDEN_BYTES


def _sent(url: str, steps: int) -> int:
    """What stage 0 has sent, once it has reported that many steps."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        link = httpx.get(f"{url}/pipeline/status", timeout=30).json()["stages"][0]["link"]
        if link["dicts_sent"] >= steps:
            return int(link["bytes_sent"])
        time.sleep(0.2)
    raise AssertionError(f"stage 0 has not reported {steps} steps")
