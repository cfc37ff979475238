"""A fork of the zygote runs this: a model loaded whole, then each stage of it, and what they hold compared by name.

    loading.py TASK.json ANSWER.json

The task is {"model", "ranges": [[start, end], ..], "forms": [[directory of each stage], ..], "settings" of EngineArgs}.
The answer is a list of what is not as in the whole model, in words.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from zmqpp.layers import LayerRange
from zmqpp.vllm.model_split import said_in_words
from zmqpp.vllm.weights import LoadReport, check_directory
from zmqpp.vllm.worker import PARTITION_VARIABLE, StageWorker, partition

_LOADER = "vllm.model_executor.model_loader.default_loader"


class Place:
    """What models ask of their pipeline's group while they are built."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank_in_group = self.rank = rank
        self.world_size = size
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1


class Loading:
    """Loads models one after the other; all are kept, as vLLM remembers by address what a model lacks."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._models: list[torch.nn.Module] = []
        self._parallel: Any = importlib.import_module("vllm.distributed.parallel_state")
        self._module: Any = importlib.import_module(_LOADER)
        names = ("safetensors_weights_iterator", "multi_thread_safetensors_weights_iterator")
        self._own = {name: getattr(self._module, name) for name in names}
        self._load_weights = self._module.DefaultModelLoader.load_weights

    def held(self, folder: str, rank: int, ranges: list[LayerRange]) -> dict[str, torch.Tensor]:
        """Parameters and buffers of one stage, as they are before they are packed for the device."""
        from vllm.config import set_current_vllm_config
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.model_loader.utils import initialize_model
        from vllm.utils.torch_utils import set_default_torch_dtype

        config = EngineArgs(model=folder, **self._settings).create_engine_config()
        dtype = config.model_config.dtype
        with set_current_vllm_config(config), set_default_torch_dtype(dtype):
            self._begin(config, rank, len(ranges))
            self._take_part(folder, rank, ranges)
            with said_in_words(config.model_config.architecture, rank):
                model = initialize_model(vllm_config=config, model_config=config.model_config)
            loader = self._module.DefaultModelLoader(config.load_config)
            loader.load_weights(model, config.model_config)
        self._models.append(model)
        named = dict(model.named_parameters(remove_duplicate=False))
        named |= dict(model.named_buffers(remove_duplicate=False))
        return {name: tensor.detach() for name, tensor in named.items()}

    def _begin(self, config: Any, rank: int, stages: int) -> None:
        """One process with all the groups that a model may ask for; its place in the pipeline is told."""
        if not self._models:
            store = f"file://{tempfile.mkdtemp()}/store"
            self._parallel.init_distributed_environment(1, 0, store, 0, "gloo")
            self._parallel.ensure_model_parallel_initialized(1, 1)
        config.parallel_config.pipeline_parallel_size = stages
        self._parallel._PP = Place(rank, stages)

    def _take_part(self, folder: str, rank: int, ranges: list[LayerRange]) -> None:
        """vLLM's loader as a stage has it; vLLM's own where there is but one."""
        self._module.DefaultModelLoader.load_weights = self._load_weights
        vars(self._module).update(self._own)
        layers, total = ranges[rank], ranges[-1].end
        os.environ[PARTITION_VARIABLE] = partition(layers, rank, len(ranges), total)
        if len(ranges) > 1:
            check_directory(folder, layers, total, rank)
            worker = object.__new__(StageWorker)
            worker.report, worker.stage = LoadReport(layers, total, rank), rank
            worker.group = Place(rank, len(ranges))  # type: ignore[assignment]
            worker._replace_loader()


def differences(loading: Loading, model: str, ranges: list[LayerRange], forms: list[list[str]]) -> list[str]:
    whole = loading.held(model, 0, [LayerRange(0, ranges[-1].end)])
    found = []
    for folders in forms:
        seen: set[str] = set()
        for stage, folder in enumerate(folders):
            held = loading.held(folder, stage, ranges)
            wrong = {name for name, tensor in held.items() if not is_same(tensor, whole.get(name))}
            found += [f"{folder}: stage {stage} has another {name}" for name in sorted(wrong)]
            seen |= held.keys()
        found += [f"{folders[0]}: no stage has {name}" for name in sorted(whole.keys() - seen)]
    return found


def is_same(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    """By their bytes: what no checkpoint fills may be NaN."""
    if other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    bytes_of = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return one.numel() == 0 or torch.equal(*bytes_of)


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    ranges = [LayerRange(*pair) for pair in task["ranges"]]
    found = differences(Loading(task["settings"]), task["model"], ranges, task["forms"])
    part = Path(f"{sys.argv[2]}.part")
    part.write_text(json.dumps(found))
    part.rename(sys.argv[2])


if __name__ == "__main__":
    main()
