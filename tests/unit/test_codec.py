"""vLLM's objects survive the codec unchanged; what is not on the whitelist is refused by name."""

from __future__ import annotations

import dataclasses
import importlib.util
import pickle  # noqa: TID251 - to compare sizes with
import sys
from collections import UserDict
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalFlatField,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.core.sched.output import CachedRequestData, GrammarOutput, NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheTensor
from vllm.v1.outputs import LogprobsLists, LogprobsTensors, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes

from zmqpp.errors import MalformedError, UnsupportedError
from zmqpp.vllm import codec

pytestmark = pytest.mark.vllm


def same(a: Any, b: Any) -> bool:
    """Deep equality with types, over tensors, arrays and structs."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict | UserDict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, msgspec.Struct):
        return all(same(getattr(a, f), getattr(b, f)) for f in a.__struct_fields__)
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)


def scheduler_output() -> SchedulerOutput:
    params = SamplingParams(
        temperature=0.7,
        seed=1 << 62,
        stop=["a", "b"],
        logit_bias={5: 1.0, 7: -100.0},
        structured_outputs=StructuredOutputsParams(regex="[a-z]+"),
        output_kind=RequestOutputKind.DELTA,
    )
    params._all_stop_token_ids = {1, 2}
    new = NewRequestData("r1", list(range(1000)), [], params, None, ([1, 2], [3]), 0, None)
    cached = CachedRequestData(["r0"], {"r0"}, [[7]], {"r0": [1, 2]}, [([4],)], [12], [3])
    return dataclasses.replace(
        SchedulerOutput.make_empty(),
        scheduled_new_reqs=[new],
        scheduled_cached_reqs=cached,
        num_scheduled_tokens={"r1": 1000, "r0": 1},
        total_num_scheduled_tokens=1001,
        finished_req_ids={"gone"},
    )


OBJECTS = {
    "a step": scheduler_output(),
    "an empty step": SchedulerOutput.make_empty(),
    "a grammar mask": GrammarOutput(["r1"], np.arange(12, dtype=np.int32).reshape(2, 6)),
    "an output": ModelRunnerOutput(
        req_ids=["a", "b"],
        req_id_to_index={"a": 0, "b": 1},
        sampled_token_ids=[[5], []],
        logprobs=LogprobsLists(np.ones((2, 3), np.int32), np.ones((2, 3), np.float32), np.zeros(2, np.int32)),
        prompt_logprobs_dict={
            "a": LogprobsTensors(torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2)),
            "b": None,
        },
    ),
    "cache specs": {
        "model.layers.0.attn": FullAttentionSpec(
            block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32
        )
    },
    "compile times": [CompilationTimes(1.5, 0.0)],
    "an adapter": LoRARequest("a", 1, "/adapters/a"),
    "pooling parameters": PoolingParams(task="embed", dimensions=8),
    "parameters with words of a client's own": SamplingParams(extra_args={"a": [1, {"b": None}]}),
    "an image": [
        MultiModalKwargsItem(
            {
                "pixels": MultiModalFieldElem(torch.ones(3, 4), MultiModalBatchedField()),
                "pieces": MultiModalFieldElem(
                    [torch.zeros(2), torch.ones(1)],
                    MultiModalFlatField(slices=[(slice(None), slice(1, 3)), slice(2, None, 1)]),
                ),
            }
        ),
        PlaceholderRange(2, 4, torch.tensor([True, False, True, True])),
    ],
    "values": [
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
        slice(1, None),
    ],
    "empty arrays": [np.zeros((0, 3), np.int32), np.zeros(0), np.array("2020-01-01", "M8[s]")],
    "tensors": [
        torch.zeros(0, 3),
        torch.tensor(5),
        torch.ones(2, 3, dtype=torch.bfloat16).t(),
        torch.float8_e4m3fn,
    ],
}


@pytest.mark.parametrize("name", OBJECTS)
def test_object_arrives_as_it_was_sent(name: str) -> None:
    sent = OBJECTS[name]
    body = codec.encode(sent)
    assert same(codec.decode(body), sent)
    if name == "a step":
        assert len(body) < len(pickle.dumps(sent))


def test_a_cache_configuration_arrives_as_it_was_sent() -> None:
    spec = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32)
    config = KVCacheConfig.__new__(KVCacheConfig)
    known = {"num_blocks": 10, "kv_cache_groups": [KVCacheGroupSpec(["l0"], spec)]}
    for field in dataclasses.fields(KVCacheConfig):
        default = None if field.default is dataclasses.MISSING else field.default
        object.__setattr__(config, field.name, known.get(field.name, default))
    tensor = KVCacheTensor.__new__(KVCacheTensor)
    for field in dataclasses.fields(KVCacheTensor):
        object.__setattr__(tensor, field.name, {"size": 4096, "shared_by": ["l0"]}.get(field.name))
    config.kv_cache_tensors = [tensor]
    assert same(codec.decode(codec.encode(config)), config)


def test_an_unknown_type_is_refused_with_its_name_and_place() -> None:
    step = scheduler_output()
    step.num_scheduled_tokens["r9"] = object()  # type: ignore[assignment]
    with pytest.raises(UnsupportedError, match=r"num_scheduled_tokens\['r9'\] is a builtins.object"):
        codec.encode(step)


@pytest.mark.parametrize(
    "name", ["os:system", "builtins:eval", "vllm.sampling_params:logger", "subprocess:Popen", "vllm:LLM"]
)
def test_a_class_that_is_not_on_the_list_is_not_built(name: str) -> None:
    body = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, msgspec.msgpack.encode([name, {}])))
    with pytest.raises(MalformedError, match=name.split(":")[1]):
        codec.decode(body)


@pytest.mark.parametrize(
    "content",
    [
        ["tensor", "float32", [2, 2], b"123"],
        ["tensor", "float32", [1 << 40, 1 << 40], b""],
        ["tensor", "float32", [-1], b""],
        ["tensor", "nn", [1], b"1234"],
        ["array", "|O", [1], b"12345678"],
        ["array", "<f4", [3], b"1234"],
        ["tensor", "onnx", [1], b"1234"],
        ["tensor", "float32", [0, 1 << 61, 1 << 61], b""],
        ["tensor", "float32", [1], "1234"],
        ["tensor", "uint8", [4], [1, 2, 3, 4]],
        ["array", "i4,(2,)f4", [1], bytes(12)],
        ["array", {"names": ["a"], "formats": ["O"]}, [1], bytes(8)],
        ["array", [["a", "<i4"]], [1], b"1234"],
        ["int", 3.5],
        ["int", "9" * 5000],
        ["dtype", "load"],
        ["dtype", "_dynamo"],
        [],
        ["nothing known"],
    ],
)
def test_hostile_content_is_an_error_and_nothing_else(content: list[Any]) -> None:
    body = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, msgspec.msgpack.encode(content)))
    with pytest.raises(MalformedError):
        codec.decode(body)


def test_a_cut_or_flipped_payload_is_an_error_and_nothing_else() -> None:
    body = codec.encode(OBJECTS["a step"])
    for cut in range(0, len(body), 97):
        with pytest.raises(MalformedError):
            codec.decode(body[:cut])
    for at in range(0, len(body), 13):
        flipped = bytearray(body)
        flipped[at] ^= 0xFF
        try:
            codec.decode(bytes(flipped))
        except MalformedError:
            pass


@pytest.mark.parametrize("name", ["onnx", "_dynamo", "_inductor", "_export"])
def test_a_dtype_that_is_a_module_of_torch_is_not_imported(name: str) -> None:
    before = set(sys.modules)
    body = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, msgspec.msgpack.encode(["dtype", name])))
    with pytest.raises(MalformedError, match="unknown dtype"):
        codec.decode(body)
    assert set(sys.modules) == before


@pytest.mark.parametrize("given", [7, [(), {}], ((), []), ((), {1: 2}), ((), {}, 1), ([], {})])
def test_arguments_of_a_call_are_a_tuple_and_a_dict_with_names(given: Any) -> None:
    assert codec.decode_arguments(codec.encode(((1, "a"), {"b": 2}))) == ((1, "a"), {"b": 2})
    with pytest.raises(MalformedError, match="argument"):
        codec.decode_arguments(codec.encode(given))


def test_a_mapping_of_a_class_that_may_travel_has_texts_for_keys() -> None:
    name = "vllm.multimodal.inputs:MultiModalKwargsItem"
    for held in ([1], {1: 2}):
        inner = msgspec.msgpack.encode([name, held])
        with pytest.raises(MalformedError, match="no mapping of names"):
            codec.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(1, inner)))
    with pytest.raises(MalformedError, match="a slice of"):
        codec.decode(
            msgspec.msgpack.encode(msgspec.msgpack.Ext(1, msgspec.msgpack.encode(["slice", 1, "a", 2])))
        )
