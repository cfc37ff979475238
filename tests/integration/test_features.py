"""What vLLM's server offers besides plain sampling does over external stages what it does in one process."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.integration.adapters import RANK, random_adapters
from tests.integration.cases import PROMPTS
from tests.integration.serving import FLAGS, NAME, Served, long_only, one_process, pipeline

pytestmark = long_only

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
"""vLLM's own switches: sleep, cache and RPC routes; adapters that come and go."""
HIDDEN = 192


def post(served: Served, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    answer = httpx.post(f"{served.url}{path}", json=body, timeout=120, verify=False)
    kind = answer.headers.get("content-type", "")
    return answer.status_code, answer.json() if "json" in kind else answer.text


def texts(served: Served, **more: Any) -> list[str]:
    body = {
        "model": NAME,
        "prompt": PROMPTS[0],
        "temperature": 0,
        "max_tokens": 16,
        "ignore_eos": True,
        **more,
    }
    code, answer = post(served, "/v1/completions", body)
    assert code == 200, answer
    return [choice["text"] for choice in answer["choices"]]


def several_adapters_at_once(served: Served) -> list[list[str]]:
    names = ["one", NAME, "two", "one", "two", NAME, "one", NAME]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda name: texts(served, model=name), names))


def adapter_comes_and_goes(served: Served, folder: Path) -> list[Any]:
    found: list[Any] = []
    loaded = {"lora_name": "three", "lora_path": str(folder / "three")}
    found.append(post(served, "/v1/load_lora_adapter", loaded)[0])
    found.append(texts(served, model="three"))
    found.append(post(served, "/v1/unload_lora_adapter", {"lora_name": "three"})[0])
    found.append(post(served, "/v1/completions", {"model": "three", "prompt": "a"})[0])
    return found


def missing_adapter(served: Served, folder: Path) -> list[Any]:
    missing = {"lora_name": "none", "lora_path": str(folder / "none")}
    return [post(served, "/v1/load_lora_adapter", missing)[0], texts(served)]


def chat(served: Served) -> Any:
    messages = [{"role": "user", "content": "What is a list?"}]
    body = {"model": NAME, "messages": messages, "temperature": 0, "max_tokens": 16, "logprobs": True}
    code, answer = post(served, "/v1/chat/completions", body)
    assert code == 200, answer
    choice = answer["choices"][0]
    return choice["message"]["content"], [token["token"] for token in choice["logprobs"]["content"]]


def prompt_as_embeddings(served: Served) -> list[str]:
    rows = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(3))
    written = io.BytesIO()
    torch.save(rows, written)
    return texts(served, prompt=None, prompt_embeds=base64.b64encode(written.getvalue()).decode())


def sleeps_and_wakes(served: Served) -> list[Any]:
    asleep = post(served, "/sleep?level=1", {})[0]
    said = httpx.get(f"{served.url}/is_sleeping", timeout=30).json()
    return [asleep, said, post(served, "/wake_up", {})[0], texts(served)]


def pauses(served: Served) -> list[Any]:
    paused = post(served, "/pause", {})[0]
    said = httpx.get(f"{served.url}/is_paused", timeout=30).json()
    return [paused, said, post(served, "/resume", {})[0], texts(served)]


def caches_are_reset(served: Served) -> list[Any]:
    routes = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
    return [*(post(served, route, {})[0] for route in routes), texts(served)]


def a_burst_of_priorities(served: Served) -> list[list[str]]:
    with ThreadPoolExecutor(16) as pool:
        asked = [(prompt, number % 4) for number, prompt in enumerate(PROMPTS)]
        return list(pool.map(lambda one: texts(served, prompt=one[0], priority=one[1]), asked))


FEATURES: dict[str, Callable[[Served, Path], Any]] = {
    "adapter one": lambda served, _: texts(served, model="one"),
    "adapter two": lambda served, _: texts(served, model="two"),
    "several adapters at once": lambda served, _: several_adapters_at_once(served),
    "an adapter comes and goes": adapter_comes_and_goes,
    "an adapter that is not there": missing_adapter,
    "beam search": lambda served, _: texts(served, use_beam_search=True, n=3, beam_width=3),
    "chat": lambda served, _: chat(served),
    "echo": lambda served, _: texts(served, echo=True, max_tokens=4),
    "priorities": lambda served, _: a_burst_of_priorities(served),
    "prompt embeddings": lambda served, _: prompt_as_embeddings(served),
    "resetting caches": lambda served, _: caches_are_reset(served),
    "sleep and wake": lambda served, _: sleeps_and_wakes(served),
    "pause and resume": lambda served, _: pauses(served),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def flags(folder: Path) -> tuple[str, ...]:
    template = folder / "template.jinja"
    template.write_text(TEMPLATE)
    return (
        *FLAGS,
        *("--enable-lora", "--max-loras", "3", "--max-lora-rank", str(2 * RANK)),
        *("--lora-modules", f"one={folder / 'one'}", f"two={folder / 'two'}"),
        *("--scheduling-policy", "priority", "--enable-prompt-embeds", "--chat-template", str(template)),
    )


@pytest.fixture(scope="module")
def alone(folder: Path, flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one ordinary vLLM process does."""
    log = tmp_path_factory.mktemp("reference") / "vllm.log"
    with one_process(log, flags=flags, environment=ENVIRONMENT) as vllm:
        return {name: feature(vllm, folder) for name, feature in FEATURES.items()}


@pytest.fixture(scope="module")
def served(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pipeline(
        tmp_path_factory.mktemp("pipeline") / "logs", 2, flags=flags, environment=ENVIRONMENT
    ) as served:
        yield served


@pytest.mark.parametrize("name", FEATURES)
def test_it_does_what_one_process_does(
    name: str, alone: dict[str, Any], served: Served, folder: Path
) -> None:
    assert FEATURES[name](served, folder) == alone[name]


def test_adapters_change_what_is_said(alone: dict[str, Any]) -> None:
    """Else the comparison above would not notice one that was never applied."""
    ways = [alone["adapter one"], alone["adapter two"], alone["resetting caches"][-1]]
    assert len({str(way) for way in ways}) == 3


def test_a_method_of_the_worker_runs_on_every_stage(served: Served) -> None:
    code, answer = post(served, "/collective_rpc", {"method": "list_loras"})
    assert code == 200
    assert len(answer["results"]) == 2, answer
