"""The Python decoders of foreign bytes, each with what it is given first and what must come of any input.

    python -m tests.fuzz.decoders NAME SECONDS [FOLDER]

A target refuses its input with one of zmqpp's errors or accepts it; any other exception is a failure. With atheris
(`pip install atheris`) the inputs follow the branches that are taken, and what it found interesting is kept in FOLDER;
without it they are random changes. The last line says how many there were.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from tests.fuzz.mutation import Mutator
from zmqpp import _engine, _manifest_reader, _tensors, control
from zmqpp.errors import ConfigError, ProtocolError
from zmqpp.watch import report, span
from zmqpp.watch.status import Histogram, LastStep, LinkCounters, Memory

MOST_BYTES = 8192
_HAS_VLLM = importlib.util.find_spec("vllm") is not None


@dataclass(frozen=True)
class Target:
    """`accept` raises nothing, whatever it is given."""

    accept: Callable[[bytes], bool]
    """Whether the input was accepted."""
    corpus: Callable[[], list[bytes]]
    modules: tuple[str, ...] = ()
    """Whose branches atheris follows; none where all of the work is done in C, by msgspec."""


def _accepts(decode: Callable[[bytes], Any], content: bytes) -> bool:
    try:
        decode(content)
    except (ProtocolError, ConfigError) as error:
        text = str(error)
        assert len(text) < 1000 and "\n" not in text, f"an error of {len(text)} characters"
        return False
    return True


# ---- control messages ------------------------------------------------------------------------------------


def control_messages() -> list[bytes]:
    """One of each."""
    settings = {"dtype": "float32", "max_model_len": 1024, "hf_overrides": {"a": [1, 2.5, None, True]}}
    weights = {"model.safetensors": ("digest", "sample")}
    hello = control.Hello("s", 1, control.PROTOCOL_VERSION, "0.1", "0.32.0", 2, {"n": 1}, weights, settings)
    messages: list[control.AnyMessage] = [
        hello,
        control.HelloReply(1, 8, 4, 8, "0.1", "0.32.0", "h", 7, "tcp://h:1", "tcp://h:2"),
        control.Rpc(3, "check_health", b"\x90", [0, 1]),
        control.RpcReply(3, 1, payload=b"\xc0"),
        control.RpcReply(3, 1, error="it did not work"),
        control.Exec(9, 4, True, b"payload"),
        control.Sample(9, b"payload"),
        control.StepReply(9, b"payload"),
        control.Report(1, b"payload"),
        control.Lost(1, "gone"),
        control.Failed(1, "broken", "traceback"),
        control.Refused([1], "another model"),
        control.Stop(),
    ]
    return [control.encode(message) for message in messages]


# ---- payloads of vLLM's objects --------------------------------------------------------------------------


def payloads() -> list[bytes]:
    """What stages send one another; without vLLM, the values that need none of it."""
    from zmqpp.vllm import codec

    values: list[Any] = [
        [
            None,
            True,
            1 << 80,
            -(1 << 70),
            2.5,
            b"x",
            "é",
            (1, (2,)),
            {1, 2},
            frozenset({3}),
            {1: "a", (2,): "b"},
        ],
        [torch.zeros(0, 3), torch.tensor(5), torch.ones(2, 3, dtype=torch.bfloat16), torch.float8_e4m3fn],
        [
            np.arange(4, dtype=np.int32),
            np.zeros((0, 3)),
            np.array("2020-01-01", "M8[s]"),
            np.array(["ab", "c"]),
        ],
        ((1, "a"), {"key": [1, 2]}),
        *(_vllm_values() if _HAS_VLLM else []),
    ]
    return [codec.encode(value) for value in values]


def _vllm_values() -> list[Any]:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.output import CachedRequestData, GrammarOutput, NewRequestData, SchedulerOutput
    from vllm.v1.kv_cache_interface import FullAttentionSpec
    from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

    step = SchedulerOutput.make_empty()
    step.scheduled_new_reqs = [
        NewRequestData("r1", [1, 2], [], SamplingParams(seed=1, stop=["a"]), None, ([1],), 0, None)
    ]
    step.scheduled_cached_reqs = CachedRequestData(["r0"], {"r0"}, [[7]], {"r0": [1]}, [([4],)], [12], [3])
    step.num_scheduled_tokens, step.total_num_scheduled_tokens = {"r1": 2, "r0": 1}, 3
    logprobs = LogprobsLists(np.ones((2, 3), np.int32), np.ones((2, 3), np.float32), np.zeros(2, np.int32))
    return [
        step,
        GrammarOutput(["r1"], np.arange(12, dtype=np.int32).reshape(2, 6)),
        ModelRunnerOutput(["a"], {"a": 0}, sampled_token_ids=[[5]], logprobs=logprobs),
        {"layer": FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32)},
    ]


def _decode_payload(content: bytes) -> Any:
    from zmqpp.vllm import codec

    return codec.decode(content)


def _decode_step(content: bytes) -> Any:
    from zmqpp.vllm import plain_step
    from zmqpp.vllm.step_checks import StepLimits

    limits = StepLimits(tokens=64, requests=4, length=100, blocks=10, groups=1, vocabulary=50)
    step = plain_step.decode(content)
    if type(step) is plain_step.PlainStep:
        step.check(sum(step.counts), step.ids, limits)
        return step.scheduled()
    return step


def steps() -> list[bytes]:
    """Steps of requests that run on, as the engine sends them."""
    from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput

    from zmqpp.vllm import plain_step

    step = SchedulerOutput.make_empty()
    step.scheduled_cached_reqs = CachedRequestData(
        ["a", "b"], set(), [[7], []], {}, [None, ([4],)], [12, 9], [3, 0]
    )
    step.num_scheduled_tokens, step.total_num_scheduled_tokens = {"a": 1, "b": 5}, 6
    step.finished_req_ids, step.preempted_req_ids = {"c"}, set()
    return [plain_step.encode(step)]


def _decode_output(content: bytes) -> Any:
    from zmqpp.vllm import plain_output

    return plain_output.decode(content)


def outputs() -> list[bytes]:
    """What steps give, plain and not."""
    from vllm.v1.outputs import ModelRunnerOutput

    from zmqpp.vllm import plain_output

    plain = ModelRunnerOutput(["a", "b"], {"a": 0, "b": 1}, [[5], []])
    other = ModelRunnerOutput(["a"], {"a": 0}, [[5]], prompt_logprobs_dict={"a": None})
    return [plain_output.encode(plain), plain_output.encode(other)]


# ---- manifests -------------------------------------------------------------------------------------------


@functools.cache
def _block(size: int) -> Any:
    if not size:
        return None
    block = _engine.make_block(size)
    memoryview(block)[:] = bytes(size)
    return block


def _decode_manifest(content: bytes) -> Any:
    """The first byte tells how large the payload is; the engine's own check comes first, as on a link."""
    size = 64 * (content[0] % 9) if content else 0
    block, manifest = _block(size), content[1:]
    try:
        _engine.check_manifest(manifest)
    except ProtocolError:
        pass  # the reader must not lean on it
    _tensors.decode(manifest, block)
    return _manifest_reader.decode(manifest, block)


def manifests() -> list[bytes]:
    dicts: list[dict[str, Any]] = [
        {},
        {"x": torch.arange(6.0).view(2, 3), "n": [1, None, {"k": "v"}], "a": np.zeros(3, ">i4")},
        {"big": 1 << 100, "wild": "\ud800", "record": np.zeros(2, [("a", "<i4"), ("b", "S3", (2,))])},
        {"hidden": torch.zeros(2, 16).bfloat16(), "residual": torch.zeros(2, 16).bfloat16()},
        {"deep": [[[[torch.ones(3)]]]], "none": torch.empty(0, 7), "b": {1: 2.5, None: True}},
    ]
    made = []
    for values in dicts:
        encoded = _tensors.encode(values)
        blocks = sum((size + 63) // 64 for _, size in encoded.spans)
        made.append(bytes([blocks]) + encoded.manifest)
    large = msgspec.msgpack.encode([[64, 64], [1, "x", [6, 0], "y", [7, 1]]])
    packed = [[64, 8], [1, "x", [8, 0, 1, "fp8", "bfloat16", False, [2, 32]], "y", [0, 1]]]
    return [*made, b"\x02" + large, b"\x02" + msgspec.msgpack.encode(packed)]


# ---- reports and spans -----------------------------------------------------------------------------------


def reports() -> list[bytes]:
    histogram = Histogram([0.1, 1.0], [1, 2, 3], 2.5)
    step = LastStep(4, 1.5, 3, 2, 0.1, 0.2, 0.3)
    made = report.StageReport(
        *(9, 1, 2, 3, 4, 5, 6, step, {"decode": histogram}, histogram),
        *(LinkCounters(lane="shm"), Memory(1, 2, 3), "cpu"),
    )
    return [report.encode(made)]


def spans() -> list[bytes]:
    two = [span.Span("compute", 1, 10, 20), span.Span("wait", 1, 20, 25)]
    return [span.encode(span.StageSpans(1, two, host="h", clock_ns=7, clock="c", sizes={1: (4, 2)}))]


# ---- key files -------------------------------------------------------------------------------------------


def key_files() -> list[bytes]:
    from zmqpp.keys import make_keys

    with tempfile.TemporaryDirectory() as folder:
        path, _ = make_keys(Path(folder, "keys"))
        return [path.read_bytes()]


_key_folder: list[Any] = []


def _read_key_file(content: bytes) -> Any:
    from zmqpp.keys import FILE_NAME, read_keys

    if not _key_folder:
        _key_folder.append(tempfile.TemporaryDirectory())
    path = Path(_key_folder[0].name, FILE_NAME)
    path.touch(0o600)
    path.write_bytes(content)
    return read_keys(_key_folder[0].name)


def _target(decode: Callable[[bytes], Any], corpus: Callable[[], list[bytes]], *modules: str) -> Target:
    return Target(lambda content: _accepts(decode, content), corpus, modules)


TARGETS = {
    "control": _target(control.decode, control_messages),
    "manifest": _target(
        _decode_manifest,
        manifests,
        *("zmqpp._manifest_reader", "zmqpp._numpy_types", "zmqpp._manifest", "zmqpp._packing"),
    ),
    "report": _target(report.decode, reports),
    "span": _target(span.decode, spans),
    "keys": _target(_read_key_file, key_files),
    **(
        {
            "codec": _target(_decode_payload, payloads, "zmqpp.vllm.codec", "zmqpp._manifest"),
            "step": _target(_decode_step, steps, "zmqpp.vllm.plain_step", "zmqpp.vllm.plain_form"),
            "output": _target(_decode_output, outputs, "zmqpp.vllm.plain_output", "zmqpp.vllm.plain_form"),
        }
        if _HAS_VLLM
        else {}
    ),
}


# ---- running ---------------------------------------------------------------------------------------------


def run(name: str, seconds: float, seed: int) -> tuple[int, int]:
    """Random changes of the corpus for a while; returns how many, and how many of them were accepted."""
    target = TARGETS[name]
    corpus = target.corpus()
    for content in [b"", *corpus]:
        target.accept(content)
    mutator = Mutator(corpus, seed)
    until, runs, accepted = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        for _ in range(100):
            content = mutator.next()[:MOST_BYTES]
            try:
                accepted += target.accept(content)
            except BaseException:
                print(f"{name}: failed with {content!r}", file=sys.stderr)
                raise
            runs += 1
    return runs, accepted


def is_guided(name: str) -> bool:
    """Whether there is atheris, and something for it to follow."""
    return bool(TARGETS[name].modules) and importlib.util.find_spec("atheris") is not None


def run_guided(name: str, seconds: float, found: Path) -> None:
    """With atheris, which ends the process."""
    import atheris

    target = TARGETS[name]
    corpus = target.corpus()
    for module in target.modules:
        for function in _functions_of(sys.modules[module]):
            atheris.instrument_func(function)
    mutator = Mutator(corpus, time.time_ns())

    def change(content: bytes, most: int, seed: int) -> bytes:
        """libFuzzer's own changes know nothing of msgpack: every other one is ours."""
        if seed % 2:
            return bytes(atheris.Mutate(content, most))
        return mutator.change(content)[:most]

    with tempfile.TemporaryDirectory() as first:
        for index, content in enumerate(corpus):
            Path(first, str(index)).write_bytes(content)
        options = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={MOST_BYTES}", "-timeout=20"]
        options += [f"-artifact_prefix={found}-", "-print_final_stats=1", "-rss_limit_mb=4096"]
        atheris.Setup(
            [sys.argv[0], *options, str(found), first], lambda content: target.accept(content) and None
        )
        atheris.Fuzz()


def _functions_of(module: Any) -> list[Any]:
    found = []
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, type):
            found += [each for each in vars(value).values() if callable(each) and hasattr(each, "__code__")]
        elif hasattr(value, "__code__"):
            found.append(value)
    return found


def main(arguments: list[str]) -> int:
    name, seconds = arguments[0], float(arguments[1])
    if len(arguments) > 2 and is_guided(name):
        found = Path(arguments[2])
        found.mkdir(parents=True, exist_ok=True)
        run_guided(name, seconds, found)
        return 0
    runs, accepted = run(name, seconds, seed=time.time_ns())
    print(f"Done {runs} runs, {accepted} accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
