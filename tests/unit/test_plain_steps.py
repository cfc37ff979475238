"""Steps and outputs in words of their own: what comes out is what went in, and what cannot be one is refused."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

from zmqpp.errors import MalformedError
from zmqpp.vllm import codec, plain_output, plain_step
from zmqpp.vllm.plain_step import PlainStep
from zmqpp.vllm.step_checks import StepLimits, check_step

pytestmark = pytest.mark.vllm

LIMITS = StepLimits(tokens=64, requests=4, length=100, blocks=10, groups=1, vocabulary=50)


def step(count: int = 3) -> SchedulerOutput:
    """`count` requests that run on."""
    ids = [f"r{i}" for i in range(count)]
    plain = SchedulerOutput.make_empty()
    plain.scheduled_cached_reqs = CachedRequestData(
        req_ids=ids,
        resumed_req_ids=set(),
        new_token_ids=[[i] for i in range(count)],
        all_token_ids={},
        new_block_ids=[([4, i],) if i else None for i in range(count)],
        num_computed_tokens=[12 + i for i in range(count)],
        num_output_tokens=[3] * count,
    )
    plain.num_scheduled_tokens = {name: 1 + i for i, name in enumerate(ids)}
    plain.total_num_scheduled_tokens = sum(plain.num_scheduled_tokens.values())
    return plain


def arrived(payload: bytes, known: Any = ("r0", "r1", "r2"), tokens: int = 6) -> SchedulerOutput:
    """As a stage takes it in."""
    got = plain_step.decode(payload)
    assert type(got) is PlainStep
    got.check(tokens, known, LIMITS)
    return got.scheduled()


def test_plain_step_comes_out_as_it_went_in_and_passes_the_general_check() -> None:
    sent = step()
    sent.finished_req_ids, sent.preempted_req_ids = {"gone"}, set()
    got = arrived(plain_step.encode(sent))
    assert got == sent and vars(got).keys() == vars(sent).keys()
    assert all(type(value) is type(vars(sent)[name]) for name, value in vars(got).items())
    check_step(got, 6, {"r0", "r1", "r2"}, LIMITS)


def test_two_plain_steps_share_nothing() -> None:
    payload = plain_step.encode(step())
    first, second = arrived(payload), arrived(payload)
    first.scheduled_spec_decode_tokens["r0"] = [1]
    first.free_encoder_mm_hashes.append("x")
    first.scheduled_cached_reqs.all_token_ids["r0"] = [1]
    assert second == step()


def test_plain_step_is_a_fraction_of_the_general_one() -> None:
    assert 2 * len(plain_step.encode(step())) < len(codec.encode(step()))


def _with(**changes: Any) -> SchedulerOutput:
    changed = step()
    for name, value in changes.items():
        target = changed if hasattr(changed, name) else changed.scheduled_cached_reqs
        setattr(target, name, value)
    return changed


NEW = NewRequestData("new", [1], [], None, None, ([1],), 0, None)
OTHERS = {
    "a new request": _with(scheduled_new_reqs=[NEW]),
    "a resumed one": _with(resumed_req_ids={"r0"}),
    "all tokens": _with(all_token_ids={"r0": [1]}),
    "drafts": _with(scheduled_spec_decode_tokens={"r0": [1]}),
    "images": _with(scheduled_encoder_inputs={"r0": [0]}),
    "hashes": _with(free_encoder_mm_hashes=["h"]),
    "blocks to clear": _with(new_block_ids_to_zero=[1]),
    "another order": _with(num_scheduled_tokens={"r2": 3, "r1": 2, "r0": 1}),
    "nothing": SchedulerOutput.make_empty(),
}


@pytest.mark.parametrize("case", OTHERS)
def test_every_other_step_takes_the_general_codec(case: str) -> None:
    payload = plain_step.encode(OTHERS[case])
    assert payload == codec.encode(OTHERS[case])
    assert plain_step.decode(payload) == plain_step.scheduled(payload) == OTHERS[case]


def test_no_field_of_a_step_is_forgotten() -> None:
    """Whatever a field holds that an empty step does not: it arrives."""
    for field in fields(SchedulerOutput):
        changed = step()
        if field.name in ("scheduled_cached_reqs", "num_scheduled_tokens", "total_num_scheduled_tokens"):
            continue
        setattr(changed, field.name, {"preempted_req_ids": {"r9"}}.get(field.name, {"r9": [7]}))
        if field.name in ("finished_req_ids", "num_common_prefix_blocks"):
            setattr(changed, field.name, {"r9"} if field.name == "finished_req_ids" else [7])
        assert getattr(plain_step.scheduled(plain_step.encode(changed)), field.name) == getattr(
            changed, field.name
        ), field.name


WRONG: dict[str, dict[str, Any]] = {
    "ids": {"ids": ["r0", "r0", "r1"]},
    "unknown": {"ids": ["r0", "r1", "r7"]},
    "counts": {"counts": [1, 2, 0]},
    "counts that sum up": {"counts": [7, -2, 1]},
    "lengths": {"computed": [1, 2]},
    "outputs": {"outputs": [0, 0, 101]},
    "computed": {"computed": [-1, 0, 0]},
    "beyond": {"computed": [12, 13, 98]},
    "block": {"blocks": [None, ([10],), None]},
    "groups": {"blocks": [None, ([1], [2]), None]},
    "negative block": {"blocks": [None, ([-1],), None]},
    "token": {"tokens": [[1], [50], [2]]},
    "tokens of some": {"tokens": [[1]]},
    "finished": {"finished": ["r1"]},
    "type": {"computed": [1, 2, "x"]},
    "blocks of texts": {"blocks": [None, (["a"],), None]},
    "float": {"counts": [1.5, 2, 3]},
}


@pytest.mark.parametrize("case", WRONG)
def test_step_that_cannot_run_is_refused(case: str) -> None:
    right = msgspec.msgpack.decode(plain_step.encode(step()), type=PlainStep)
    payload = msgspec.msgpack.encode(msgspec.structs.replace(right, **WRONG[case]))
    with pytest.raises(MalformedError):
        arrived(payload)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_bytes_are_a_step_by_accident(noise: bytes) -> None:
    for front in (b"", b"\x99", b"\x99\x93\xa2r0\xa2r1\xa2r2"):
        try:
            arrived(front + noise)
        except (MalformedError, AssertionError):
            pass
        try:
            plain_output.decode(b"\x93" * bool(front) + noise)
        except MalformedError:
            pass


# ---- outputs ---------------------------------------------------------------------------------------------


def output(**fields: Any) -> ModelRunnerOutput:
    right = {"req_ids": ["a", "b"], "req_id_to_index": {"a": 0, "b": 1}, "sampled_token_ids": [[5], []]}
    return ModelRunnerOutput(**{**right, **fields})


@pytest.mark.parametrize("nans", [None, {}, {"a": 3}])
def test_plain_output_comes_out_as_it_went_in(nans: Any) -> None:
    sent = output(num_nans_in_logits=nans)
    payload = plain_output.encode(sent)
    assert plain_output.decode(payload) == sent and len(payload) < 40


LOGPROBS = LogprobsLists(
    np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32), np.zeros(2, np.int32), None
)


@pytest.mark.parametrize(
    "other",
    [
        output(logprobs=LOGPROBS),
        output(prompt_logprobs_dict={"a": None}),
        output(pooler_output=[torch.ones(2), None]),
    ],
    ids=["logprobs", "prompt logprobs", "pooled"],
)
def test_every_other_output_takes_the_general_codec(other: ModelRunnerOutput) -> None:
    payload = plain_output.encode(other)
    assert payload == codec.encode(other)
    got = plain_output.decode(payload)
    assert got.req_ids == other.req_ids and (got.logprobs is None) == (other.logprobs is None)
    assert (got.pooler_output is None) == (other.pooler_output is None)


@pytest.mark.parametrize(
    "content", [[["a"], [[1.5]], None], [["a"], [1], None], [[1], [[1]], None], [[], []]]
)
def test_output_that_is_none_is_refused(content: Any) -> None:
    payload = msgspec.msgpack.encode([*content, *([None] * (3 - len(content)))])
    if content == [[], []]:
        assert plain_output.decode(payload).req_ids == []
        return
    with pytest.raises(MalformedError):
        plain_output.decode(payload)
