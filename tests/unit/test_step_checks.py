"""A step from another process: every number in it that vLLM takes for an index is in its range, or it is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, GrammarOutput, NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import (
    EncoderOnlyAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from zmqpp.config import TransportConfig
from zmqpp.errors import MalformedError, UnsupportedError
from zmqpp.vllm.admission import Admission
from zmqpp.vllm.answers import Answers
from zmqpp.vllm.bereft import Bereft
from zmqpp.vllm.step_checks import (
    StepLimits,
    check_grammar,
    check_output,
    check_restored,
    check_step,
    groups_with_blocks,
)
from zmqpp.vllm.worker_methods import may_be_called

pytestmark = pytest.mark.vllm

LIMITS = StepLimits(tokens=64, requests=4, length=100, blocks=10, groups=1, vocabulary=50)
TOKENS = 4


def request(**fields: Any) -> NewRequestData:
    right = {
        "req_id": "new",
        "prompt_token_ids": [1, 2, 49],
        "mm_features": [],
        "sampling_params": SamplingParams(),
    }
    right |= {"pooling_params": None, "block_ids": ([9],), "num_computed_tokens": 0, "lora_request": None}
    return NewRequestData(**{**right, **fields})


def step() -> SchedulerOutput:
    """One request that is new, one that was there."""
    right = SchedulerOutput.make_empty()
    right.scheduled_new_reqs = [request()]
    right.scheduled_cached_reqs = CachedRequestData(["old"], set(), [[7]], {}, [([4],)], [12], [3])
    right.num_scheduled_tokens, right.total_num_scheduled_tokens = {"new": 3, "old": 1}, TOKENS
    return right


def test_layers_that_see_the_whole_prompt_have_no_blocks() -> None:
    """As of a Llama that is made to attend both ways; vLLM's runner has a group for them, its scheduler none."""
    shape: dict[str, Any] = {"block_size": 16, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
    encoder = KVCacheGroupSpec(["layer"], EncoderOnlyAttentionSpec(**shape))
    blocks = KVCacheGroupSpec(["layer"], FullAttentionSpec(**shape))
    found = [
        groups_with_blocks(KVCacheConfig(1, [], groups)) for groups in ([encoder], [blocks, encoder], [])
    ]
    assert found == [0, 1, 0]
    without = step()
    without.scheduled_new_reqs = [request(block_ids=())]
    without.scheduled_cached_reqs = CachedRequestData(["old"], set(), [[7]], {}, [None], [12], [3])
    check_step(without, TOKENS, {"old"}, replace(LIMITS, groups=0))


def test_a_step_that_fits_and_one_that_says_only_what_ended_are_taken() -> None:
    check_step(step(), TOKENS, {"old"}, LIMITS)
    empty = SchedulerOutput.make_empty()
    empty.finished_req_ids = {"old", "unknown"}
    check_step(empty, 0, {"old"}, LIMITS)
    check_restored([request(block_ids=())], [[1, 2]], LIMITS)
    of_a_client = SamplingParams(extra_args={"a": "x"}, top_k=1 << 31)
    check_restored([request(block_ids=(), sampling_params=of_a_client)], [[]], LIMITS)
    more_than_run_at_a_time = LIMITS.requests + 1
    check_restored([request(block_ids=())] * more_than_run_at_a_time, [[]] * more_than_run_at_a_time, LIMITS)
    check_grammar(GrammarOutput(["new"], np.zeros((1, 2), np.int32)), LIMITS)


def test_what_a_stage_would_refuse_is_refused_where_it_comes_in() -> None:
    """By the engine, for that request alone."""
    model = SimpleNamespace(max_model_len=100, get_vocab_size=lambda: 50)
    scheduling = SimpleNamespace(max_num_batched_tokens=64, max_num_seqs=4)
    config, bereft = SimpleNamespace(model_config=model, scheduler_config=scheduling), Bereft()
    admission = Admission(config, bereft, TransportConfig(max_control_bytes=(128 << 10) + 4096))

    def asked(prompt: list[int], **parameters: Any) -> Request:
        sampling = SamplingParams(**parameters)
        return Request("r", prompt, sampling, None, arrival_time=0.0)

    admission.check(asked([1, 2, 49], extra_args={"a": {"b": [1.5, None]}}, top_k=1 << 40))
    admission.check(asked([1], logit_bias={5: float("-inf"), 6: float("inf"), 7: float("nan")}))
    whole = asked([1], min_tokens=1 << 60, max_tokens=1 << 61)
    admission.check(whole)
    assert whole.sampling_params is not None and whole.sampling_params.min_tokens == 100
    for wrong in (asked([50]), asked([1] * 101), asked([1], allowed_token_ids=[50])):
        with pytest.raises(MalformedError):
            admission.check(wrong)
    with pytest.raises(UnsupportedError):
        admission.check(asked([1], extra_args={"a": object()}))
    with pytest.raises(UnsupportedError, match=r"bytes.*ZMQPP_MAX_CONTROL_BYTES"):
        admission.check(asked([1], extra_args={"a": "x" * 5000}))
    adapted = asked([1])
    adapted.lora_request = LoRARequest("one", 1, "/one")
    admission.check(adapted)
    bereft.adapters.note(1, "no such folder")
    with pytest.raises(UnsupportedError, match="no such folder"):
        admission.check(adapted)
    bereft.adapters.found(1)
    admission.check(adapted)


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(of: Any) -> None:
        *ways, last = path.split(".")
        for way in ways:
            of = of[int(way)] if way.isdigit() else getattr(of, way)
        setattr(of, last, value)

    return change


NEW, CACHED = "scheduled_new_reqs.0", "scheduled_cached_reqs"
WRONG = {
    "a block that there is not": _set(f"{NEW}.block_ids", ([10],)),
    "a negative block": _set(f"{NEW}.block_ids", ([-1],)),
    "another group of blocks": _set(f"{NEW}.block_ids", ([1], [1])),
    "blocks that are no list": _set(f"{NEW}.block_ids", 5),
    "a block that is True": _set(f"{NEW}.block_ids", ([True],)),
    "a token beyond the vocabulary": _set(f"{NEW}.prompt_token_ids", [1, 2, 50]),
    "a negative token": _set(f"{NEW}.prompt_token_ids", [-1]),
    "a longer prompt than fits": _set(f"{NEW}.prompt_token_ids", [1] * 101),
    "a longer prefill than fits": _set(f"{NEW}.prefill_token_ids", [1] * 101),
    "more computed than fits": _set(f"{NEW}.num_computed_tokens", 98),
    "less than nothing computed": _set(f"{NEW}.num_computed_tokens", -1),
    "no sampling parameters": _set(f"{NEW}.sampling_params", {"n": 1}),
    "a temperature that is none": _set(f"{NEW}.sampling_params.temperature", "hot"),
    "an endless temperature": _set(f"{NEW}.sampling_params.temperature", float("inf")),
    "a penalty without end": _set(f"{NEW}.sampling_params.presence_penalty", float("-inf")),
    "a repetition penalty that is no number": _set(f"{NEW}.sampling_params.repetition_penalty", float("nan")),
    "a temperature that is no number": _set(f"{NEW}.sampling_params.temperature", float("nan")),
    "more logprobs than tokens": _set(f"{NEW}.sampling_params.prompt_logprobs", 1 << 40),
    "a bias for a token that there is not": _set(f"{NEW}.sampling_params.logit_bias", {50: 1.0}),
    "a seed beyond 64 bits": _set(f"{NEW}.sampling_params.seed", 1 << 64),
    "pooling parameters that are none": _set(f"{NEW}.pooling_params", 1),
    "a LoRA that is none": _set(f"{NEW}.lora_request", 1),
    "embeddings that are none": _set(f"{NEW}.prompt_embeds", [0.5]),
    "features that are none": _set(f"{NEW}.mm_features", 5),
    "a request that is none": _set("scheduled_new_reqs", ["new"]),
    "a known one's block": _set(f"{CACHED}.new_block_ids", [([1 << 40],)]),
    "a known one's length": _set(f"{CACHED}.num_computed_tokens", [100]),
    "a known one's token": _set(f"{CACHED}.new_token_ids", [[1 << 31]]),
    "one block list too few": _set(f"{CACHED}.new_block_ids", []),
    "one that is not known": _set(f"{CACHED}.req_ids", ["never"]),
    "no requests": _set(CACHED, None),
    "one that also finished": _set("finished_req_ids", {"old"}),
    "another sum": _set("total_num_scheduled_tokens", 5),
    "a request without its tokens": _set("num_scheduled_tokens", {"old": 4}),
    "no tokens for one": _set("num_scheduled_tokens", {"new": 4, "old": 0}),
    "drafts of another": _set("scheduled_spec_decode_tokens", {"x": [1]}),
    "blocks to clear": _set("new_block_ids_to_zero", [10]),
    "blocks to copy": _set("kv_cache_block_copies", [(1, 10)]),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_step_with_a_number_out_of_range_is_refused(what: str) -> None:
    wrong = step()
    WRONG[what](wrong)
    with pytest.raises(MalformedError, match="cannot run"):
        check_step(wrong, TOKENS, {"old"}, LIMITS)


def test_a_step_of_more_than_the_runner_has_room_for_is_refused() -> None:
    for tokens in (3, 5):
        with pytest.raises(MalformedError):
            check_step(step(), tokens, {"old"}, LIMITS)
    with pytest.raises(MalformedError):
        check_step({"no": "step"}, TOKENS, {"old"}, LIMITS)
    for outputs in ([], [[50]], [[1] * 101], 3):
        with pytest.raises(MalformedError):
            check_restored([request(block_ids=())], outputs, LIMITS)


@pytest.mark.parametrize(
    "mask",
    [np.zeros((1, 1), np.int32), np.zeros((0, 2), np.int32), np.zeros((1, 2)), np.zeros(2, np.int32), None],
)
def test_a_grammar_mask_of_another_size_is_refused(mask: Any) -> None:
    with pytest.raises(MalformedError):
        check_grammar(GrammarOutput(["new"], mask), LIMITS)


def test_an_output_that_is_none_is_refused() -> None:
    check_output(ModelRunnerOutput(["a"], {"a": 0}, sampled_token_ids=[[5]]))
    wrong = (
        *(7, None, step(), ModelRunnerOutput(["a"], {"a": 1}), ModelRunnerOutput([], 7)),
        *(ModelRunnerOutput(7, {}), ModelRunnerOutput([], {}, sampled_token_ids=[5])),
        ModelRunnerOutput([], {}, sampled_token_ids=5),
    )
    for output in wrong:
        with pytest.raises(MalformedError, match="output of a step"):
            check_output(output)


class _Extension:
    def answer(self) -> int:
        return 42

    def _hidden(self) -> None: ...


def test_only_methods_that_an_engine_needs_can_be_called_from_afar() -> None:
    for name in ("initialize_from_config", "check_health", "add_lora", "sleep"):
        assert may_be_called(name, None)
    dangerous = (
        *("update_environment_variables", "init_worker", "save_sharded_state", "save_tensorized_model"),
        *("init_weight_transfer_engine", "update_weights", "elastic_ep_execute", "apply_model", "load_model"),
        *(
            "execute_method",
            "update_config",
            "reload_weights",
            "__init__",
            "__class__",
            "_hidden",
            "execute_model",
        ),
    )
    for name in dangerous:
        assert not may_be_called(name, None) and not may_be_called(name, _Extension)
    assert may_be_called("answer", _Extension) and not may_be_called("answer", None)


def test_kept_answers_are_bounded() -> None:
    from zmqpp import control

    answers = Answers()
    rpcs = [control.Rpc(1, f"m{i}", bytes(8 << 20)) for i in range(12)]
    for rpc in rpcs:
        answers.keep(rpc, b"yes")
    kept = [answers.to(rpc) for rpc in rpcs]
    assert kept[0] == b"yes" and kept[-1] is None and 4 < kept.count(b"yes") < 12
