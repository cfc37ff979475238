"""Does a pipeline that packs its hidden states choose the same tokens as one that sends them as they are?

All prompts at once, so that every step has enough rows to be packed; in float32, where a run repeats itself.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zmqpp.bench.transport import Unavailable
from zmqpp.models import docs_llama
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan
from zmqpp.pipeline.ports import free_base_port

TOKENS = 64
FORMS = ("none", "none again", "fp8", "int8")
_READY_S, _ANSWER_S = 600.0, 600.0
_REPORTED_S = 2.5
"""After so long every stage has told what it counted."""

PROMPTS = (
    "The list type in Python",
    "To open a file, call",
    "A generator is a function that",
    "class Stack:\n    def push(self, item):",
    "Return the number of",
    "The asyncio module provides",
    "Dictionaries are",
    "If the argument is omitted,",
    "An exception is raised when",
    "import os\n\nfor name in os.listdir(",
    "Changed in version 3.8:",
    "The decorator @property",
    "Sets support mathematical operations like",
    "Note that strings are",
    "The following example shows",
    "Threads and processes",
    "The try statement specifies",
    "A module is a file",
    "Slices of a sequence",
    "def fibonacci(n):",
    "The with statement is used to",
    "When a class is defined,",
    "Keyword arguments may be",
    "The json module can",
    "An iterator must have",
    "Bytes objects are immutable",
    "The return value is",
    "See also the section on",
    "By default, the function",
    "Deprecated since version 3.9,",
    "Integers have unlimited",
    "To install a package,",
)


@dataclass(frozen=True)
class Agreement:
    """A number of stages and a form, beside the same stages without compression."""

    stages: int
    form: str
    prompts: int
    equal_prompts: int
    tokens: int
    equal_tokens: int
    """At the same place of the same answer; after the first that differs, the rest has another context."""
    mean_difference: float
    """Of the log probabilities of the tokens chosen, as long as the tokens before are equal."""
    largest_difference: float
    bytes_sent: float
    """By all stages but the last, relative to those without compression: requests and replies included."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    answers: list[tuple[list[int], list[float]]]  # a prompt: token ids, their log probabilities
    bytes_sent: int


def measure(stage_counts: Sequence[int], say: Callable[[str], None]) -> list[Agreement]:
    """Starts every pipeline once. Raises Unavailable without vLLM; LaunchError."""
    try:
        import httpx  # noqa: F401
        import vllm  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"tokens need {error.name}") from None
    made = []
    for stages in stage_counts:
        exact: _Run | None = None
        for form in FORMS:
            started = time.monotonic()
            run = _run(stages, form.partition(" ")[0])
            say(f"{stages} stages, {form}: {time.monotonic() - started:.0f} s")
            if exact is None:
                exact = run
            else:
                made.append(_compared(stages, form, run, exact))
    return made


def _compared(stages: int, form: str, run: _Run, exact: _Run) -> Agreement:
    equal_tokens = equal_prompts = 0
    differences: list[float] = []
    for (ids, logprobs), (wanted, wanted_logprobs) in zip(run.answers, exact.answers, strict=True):
        same = [one == other for one, other in zip(ids, wanted, strict=True)]
        equal_tokens += sum(same)
        equal_prompts += all(same)
        until = same.index(False) if not all(same) else len(same)
        pairs = zip(logprobs[:until], wanted_logprobs[:until], strict=True)
        differences += [abs(one - other) for one, other in pairs]
    return Agreement(
        *(stages, form, len(run.answers), equal_prompts, len(run.answers) * TOKENS, equal_tokens),
        mean_difference=sum(differences) / max(1, len(differences)),
        largest_difference=max(differences, default=0.0),
        bytes_sent=run.bytes_sent / exact.bytes_sent,
    )


def _run(stages: int, form: str) -> _Run:
    with _pipeline(stages, form) as url:
        before = _sent(url)
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            answers = list(pool.map(lambda prompt: _ask(url, prompt), PROMPTS))
        return _Run(answers, _sent(url) - before)


@contextmanager
def _pipeline(stages: int, form: str) -> Iterator[str]:
    """Its URL; CPU stages that share this machine's cores."""
    base = free_base_port(stages + 2)
    flags = [
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--no-enable-prefix-caching"),
        *("--max-num-seqs", str(len(PROMPTS)), "--kv-cache-memory-bytes", str(128 << 20)),
    ]
    cores = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    plan = PipelinePlan(
        model=str(docs_llama()),
        total=stages,
        base_port=base,
        api=ApiEndpoint("127.0.0.1", base + stages + 1, "model"),
        arguments=(*flags, "--pipeline-compression", form),
        environments=[cores] * stages,
    )
    with (
        tempfile.TemporaryDirectory(prefix="zmqpp-agreement-") as folder,
        Launcher(plan, Path(folder) / "logs") as launcher,
    ):
        launcher.start()
        launcher.wait_ready(_READY_S)
        yield plan.api.url


def _ask(url: str, prompt: str) -> tuple[list[int], list[float]]:
    import httpx

    body = {"model": "model", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    body |= {"logprobs": 0, "return_token_ids": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=_ANSWER_S, trust_env=False)
    answer.raise_for_status()
    choice = answer.json()["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def _sent(url: str) -> int:
    """By all stages but the last, whose replies are not packed."""
    import httpx

    time.sleep(_REPORTED_S)
    status = httpx.get(f"{url}/pipeline/status", timeout=30, trust_env=False).json()
    return sum(int(stage["link"]["bytes_sent"]) for stage in status["stages"][:-1])
