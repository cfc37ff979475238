"""Request load against a running endpoint: `vllm bench serve` in a child process, the pipeline's status beside it."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from zmqpp.errors import ConfigError, LaunchError, RemoteError
from zmqpp.pipeline.process import StageProcess
from zmqpp.pipeline.stage_log import clear_line
from zmqpp.watch.remote import fetch_status
from zmqpp.watch.status import PipelineStatus

__all__ = ["Load", "Measured", "measure"]

_POLL_S = 1.0
_REPORTED_S = 2.0
"""After so long every stage has told what it counted."""
_ASK_S = 5.0


@dataclass(frozen=True)
class Load:
    """What to send where; `model` and `tokenizer` are asked of the endpoint when they are None."""

    url: str
    num_prompts: int
    concurrency: int
    input_len: int
    output_len: int
    model: str | None = None
    tokenizer: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """`requests` as `vllm bench serve` names its figures; `pipeline` is None where the endpoint tells no status."""

    load: Load
    model: str
    requests: dict[str, Any]
    pipeline: dict[str, float] | None

    @property
    def first_error(self) -> str:
        """Why the first request that failed did; empty when none has."""
        return _first_error(self.requests)

    def as_json(self) -> dict[str, Any]:
        numbers = {name: value for name, value in self.requests.items() if isinstance(value, int | float)}
        return {
            "url": self.load.url,
            "model": self.model,
            "num_prompts": self.load.num_prompts,
            "concurrency": self.load.concurrency,
            "input_len": self.load.input_len,
            "output_len": self.load.output_len,
            "requests": numbers,
            "first_error": self.first_error,
            "pipeline": self.pipeline,
        }


def measure(load: Load) -> Measured:
    """Blocks until all requests are answered.

    Raises:
        RemoteError: nobody answers at the URL, or no request was served.
        ConfigError: the model is not served, or has no tokenizer here.
        LaunchError: `vllm bench serve` failed, with its own reason.
    """
    model, tokenizer = _model(load)
    samples = _status(load.url)
    with tempfile.TemporaryDirectory(prefix="zmqpp-load-") as folder:
        log, result = Path(folder) / "bench.log", Path(folder) / "result.json"
        with _running(_command(load, model, tokenizer, result), log) as process:
            while (code := process.exit_code()) is None:
                samples += _status(load.url)
                time.sleep(_POLL_S)
        if code or not result.exists():
            reason = clear_line(log)
            hint = "; give --tokenizer PATH" if "huggingface" in reason.lower() else ""
            raise LaunchError(f"`vllm bench serve` ended (exit code {code}): {reason}{hint}")
        requests = json.loads(result.read_text())
    if samples:
        time.sleep(_REPORTED_S)
        samples += _status(load.url)
    if not requests["completed"]:
        raise RemoteError(
            f"{load.url} answered none of {load.num_prompts} requests: {_why(load, model, requests)}"
        )
    return Measured(load, model, requests, _pipeline(samples))


def _model(load: Load) -> tuple[str, str]:
    """Its name at the endpoint, and where its tokenizer is."""
    served = {str(entry["id"]): str(entry.get("root") or entry["id"]) for entry in _ask_models(load.url)}
    model = load.model or next(iter(served), "")
    if model not in served:
        there = ", ".join(served) or "none"
        raise ConfigError(f"{load.url} does not serve {model or 'any model'}; it serves {there}")
    tokenizer = load.tokenizer or served[model]
    if Path(tokenizer).is_absolute() and not Path(tokenizer).is_dir():
        raise ConfigError(
            f"the tokenizer's folder {tokenizer} is not on this machine: give --tokenizer PATH or hub id"
        )
    return model, tokenizer


def _ask_models(url: str) -> list[dict[str, Any]]:
    import httpx

    try:
        response = httpx.get(f"{url}/v1/models", timeout=_ASK_S, trust_env=False)
        response.raise_for_status()
        return list(response.json()["data"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RemoteError(
            f"{url}/v1/models: {error or type(error).__name__}; is the pipeline running there?"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RemoteError(f"{url}/v1/models answers, but not as an OpenAI API does") from error


def _why(load: Load, model: str, requests: dict[str, Any]) -> str:
    """What the endpoint says to one more such request; vLLM's client keeps no more than "Bad Request"."""
    import httpx

    body = {"model": model, "prompt": [1] * load.input_len, "max_tokens": load.output_len}
    try:
        answer = httpx.post(f"{load.url}/v1/completions", json=body, timeout=60, trust_env=False)
        said = answer.json().get("error") if answer.status_code != 200 else None
    except (httpx.HTTPError, ValueError, AttributeError):
        said = None
    reason = said.get("message") if isinstance(said, dict) else said
    return " ".join(str(reason or _first_error(requests)).split())[:300]


def _first_error(requests: dict[str, Any]) -> str:
    """Why the first request that failed did; empty when none has."""
    return next((" ".join(str(error).split())[:300] for error in requests.get("errors") or [] if error), "")


def _command(load: Load, model: str, tokenizer: str, result: Path) -> list[str]:
    return [
        *[sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"],
        *["--backend", "openai", "--base-url", load.url, "--endpoint", "/v1/completions"],
        *["--model", model, "--tokenizer", tokenizer],
        *["--dataset-name", "random", "--num-prompts", str(load.num_prompts)],
        *["--random-input-len", str(load.input_len), "--random-output-len", str(load.output_len)],
        *["--max-concurrency", str(load.concurrency), "--ignore-eos", "--temperature", "0", "--disable-tqdm"],
        *["--save-result", "--save-detailed"],
        *["--result-dir", str(result.parent), "--result-filename", result.name],
        *load.flags,
    ]


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[StageProcess]:
    """Its own session, which ends with this process however that ends."""
    process = StageProcess(log)
    process.start(command, {"VLLM_NO_USAGE_STATS": "1"})
    try:
        yield process
    finally:
        process.reap()


def _status(url: str) -> list[PipelineStatus]:
    """One sample, or none where the endpoint has no such page."""
    try:
        return [fetch_status(url)[0]]
    except ConfigError:
        return []


def _pipeline(samples: list[PipelineStatus]) -> dict[str, float] | None:
    """From counters, of which the first was taken before the load, and the last once all stages had reported."""
    if len(samples) < 2:
        return None
    first, last = samples[0], samples[-1]
    rates = [_rate(one, other) for one, other in pairwise(samples) if other.at > one.at]
    busy_s = last.busy_s - first.busy_s
    computed_s = sum(stage.spent.compute_s for stage in last.stages)
    computed_s -= sum(stage.spent.compute_s for stage in first.stages)
    there_s = busy_s * max(1, len(last.stages))
    return {
        "tokens_per_s": (last.tokens - first.tokens) / busy_s if busy_s > 0 else 0.0,
        "peak_tokens_per_s": max(rates, default=0.0),
        "bubble": min(1.0, max(0.0, 1 - computed_s / there_s)) if there_s > 0 else 0.0,
        "busy_s": busy_s,
    }


def _rate(before: PipelineStatus, after: PipelineStatus) -> float:
    return (after.tokens - before.tokens) / (after.at - before.at)
