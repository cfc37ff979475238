"""One stage's vLLM worker: vLLM's own worker and model runner, told that the pipeline is ours."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.utils.network_utils import get_file_store_init_method
from vllm.v1.worker.worker_base import WorkerWrapperBase

from zmqpp import control
from zmqpp.errors import ConfigError, LaunchError
from zmqpp.layers import LayerRange
from zmqpp.vllm import codec, compat, plain_output
from zmqpp.vllm.broken_library import removes_broken_library
from zmqpp.vllm.calls import KV_CACHE, WARM_UP
from zmqpp.vllm.classifier import is_made_of_head, load_without, with_head
from zmqpp.vllm.group import PipelineGroup
from zmqpp.vllm.hybrid import copy_states_only_where_they_are
from zmqpp.vllm.layer_inputs import take_layer_inputs
from zmqpp.vllm.model_split import check_transformers_split, said_in_words
from zmqpp.vllm.plain_step import PlainStep
from zmqpp.vllm.put_away import PUT_AWAY_CALLS, PutAway
from zmqpp.vllm.rank_words import RankPlace
from zmqpp.vllm.runner import runner_for
from zmqpp.vllm.step_checks import StepLimits, check_grammar, check_restored, check_step
from zmqpp.vllm.warm import leave_alone
from zmqpp.vllm.weights import LoadReport, StageWeights, check_directory
from zmqpp.vllm.worker_methods import may_be_called
from zmqpp.watch.status import Memory

PARTITION_VARIABLE = "VLLM_PP_LAYER_PARTITION"


class StageWorker:
    """Builds the worker in the order vLLM's executors do, and runs its methods.

    Thread: all methods on the stage's main thread.

    Args:
        group: the pipeline, as vLLM's worker shall see it.
        place: among the workers of its stage, and of the pipeline.
    """

    def __init__(
        self, config: VllmConfig, group: PipelineGroup, layers: LayerRange, place: RankPlace
    ) -> None:
        self.config = config
        self.group = group
        self.place = place
        self.stage = stage = group.rank
        self.total_layers = config.model_config.get_total_num_hidden_layers()
        self.report = LoadReport(layers, self.total_layers, stage)
        total = config.parallel_config.pipeline_parallel_size
        os.environ[PARTITION_VARIABLE] = partition(layers, stage, total, self.total_layers)
        # Which of all KV cache configurations is this worker's.
        self.wrapper = WorkerWrapperBase(rpc_rank=0, global_rank=place.first + place.rank)
        self.runner = runner_for(config, self.wrapper, group)
        self.put_away = PutAway()

    def load(self) -> LoadReport:
        """Make the device ready and load this stage's weights.

        Raises:
            ConfigError: a tensor of this stage is missing. Whatever vLLM raises.
        """
        model = self.config.model_config.model
        if os.path.isdir(model):
            check_directory(model, self.report.layers, self.total_layers, self.stage)
        self._replace_distributed()
        self._replace_loader()
        # The worker adopts `rank`, which vLLM divides by the tensor-parallel size to find its place in the pipeline;
        # torch's world has this stage's processes only.
        arguments = {
            "vllm_config": self.config,
            "local_rank": self.place.rank,
            "rank": self.stage * self.place.size + self.place.rank,
            "distributed_init_method": self.place.init_method,
            "is_driver_worker": self.place.rank == 0,
            # Of use to a cache of multimodal inputs in shared memory, which several ranks do not have. Without a name.
            "shared_worker_lock": get_context("fork").Lock(),
        }
        self.runner.install()
        self.wrapper.init_worker(all_kwargs=[arguments])
        self.wrapper.init_device()
        if self.place.rank == 0 and self.place.size > 1:
            compat.forget_shared_names()
        self.group.use_device(self.wrapper.worker.device or self.group.device)
        with said_in_words(self.config.model_config.architecture, self.stage):
            self.wrapper.load_model()
        current_platform.update_block_size_for_backend(self.config)
        self.runner.prepare()
        if not self.report.parameters:
            # Another loader than vLLM's default one (dummy weights, a format of its own) was asked for.
            self.report.count(dict(self.wrapper.worker.model_runner.model.named_parameters()))
        self.group.expect(getattr(self.wrapper.worker.model_runner, "intermediate_tensors", None))
        return self.report

    def _replace_distributed(self) -> None:
        """torch.distributed spans this stage only; then `get_pp_group()` is ours, before the model is built."""

        def init(
            config: VllmConfig, rank: int, method: str | None = None, local_rank: int = -1, backend: str = ""
        ) -> None:
            alone = copy.copy(config)
            alone.parallel_config = copy.copy(config.parallel_config)
            alone.parallel_config.pipeline_parallel_size = 1
            original(alone, self.place.rank, method, local_rank, backend)
            compat.set_pipeline_group(self.group)

        modules = compat.worker_modules()
        original = modules[-1].init_worker_distributed_environment
        for module in modules:
            module.init_worker_distributed_environment = init  # type: ignore[attr-defined]

    def _replace_loader(self) -> None:
        """vLLM's default loader asks us which safetensors tensors to read, and hears from us what is missing."""
        module: Any = importlib.import_module("vllm.model_executor.model_loader.default_loader")
        loader = module.DefaultModelLoader
        original = loader.load_weights
        weights, stage, is_last = StageWeights(self.report), self.stage, self.group.is_last_rank

        def load_weights(self: Any, model: torch.nn.Module, model_config: Any) -> None:
            from vllm.model_executor.models.utils import get_pp_missing_layer_names

            check_transformers_split(model, stage)
            take_layer_inputs(model, stage)
            elsewhere = get_pp_missing_layer_names(model)
            derived = is_made_of_head(model, model_config)
            weights.begin(
                model, with_head(elsewhere, model_config, stage) if derived and is_last else elsewhere
            )
            module.safetensors_weights_iterator = lambda files, *_, **__: weights.read(files)
            module.multi_thread_safetensors_weights_iterator = module.safetensors_weights_iterator
            inner = model.load_weights
            load = partial(load_without, model_config, inner) if derived and not is_last else inner

            def watched(iterator: Any) -> Any:
                loaded = load(iterator)
                weights.finish(model, loaded, quantized=model_config.quantization is not None)
                return loaded

            model.load_weights = watched
            try:
                original(self, model, model_config)
            finally:
                del model.load_weights

        loader.load_weights = load_weights

    def call(self, method: str, args: Any, kwargs: Any) -> list[Any]:
        """Run a method of vLLM's worker that other stages may call, by its name; a result of each rank.

        Raises:
            ConfigError: no such method. Whatever the method raises.
        """
        return [self.own_call(method, args, kwargs)]

    @removes_broken_library
    def own_call(self, method: str, args: Any, kwargs: Any) -> Any:
        """This rank's part of it."""
        known = may_be_called(method, self._extension)
        target = getattr(self.wrapper, method, None) if known else None
        if not callable(target):
            raise ConfigError(f"stage {self.stage} has no worker method {method[:80]!r} that others may call")
        if method in PUT_AWAY_CALLS and not self.put_away.changes(method, args, kwargs):
            return None
        if method != WARM_UP:
            took = target(*args, **kwargs)
            self.put_away.note(method, args, kwargs)
            if method == KV_CACHE:
                runner = self.wrapper.worker.model_runner
                copy_states_only_where_they_are(runner.cache_config, runner.kv_cache_config)
            return took
        with self.group.warming_up():
            took = target(*args, **kwargs)
        leave_alone()  # compiled graphs: hundreds of milliseconds at a time
        return took

    @property
    def _extension(self) -> Any:
        """The class of `--worker-extension-cls`, which vLLM has made a base of the worker's."""
        name = str(self.config.parallel_config.worker_extension_cls or "").rpartition(".")[2]
        bases = type(self.wrapper.worker).__mro__ if name else ()
        return next((base for base in bases if base.__name__ == name), None)

    def check(self, tokens: int, step: Any) -> Any:
        """The SchedulerOutput of `step`, as `plain_step` read it, if it can run here.

        Args:
            tokens: how many its message says it has.

        Raises:
            MalformedError: it cannot.
        """
        known = self.runner.known if self.runs else ()
        if type(step) is PlainStep:
            step.check(tokens, known, self._limits())
            return step.scheduled()
        check_step(step, tokens, known, self._limits())
        self.runner.check(step)
        return step

    @removes_broken_library
    def execute(self, step: control.Exec, scheduler_output: Any) -> Any:
        """Forward pass of one step; receives and sends the activations through the pipeline group."""
        self.group.step = step.step
        return self._finished(self.runner.execute(step, scheduler_output))

    def _limits(self) -> StepLimits:
        if not self.runs:
            raise LaunchError(f"stage {self.stage}: asked to run before it had a KV cache")
        return StepLimits.of(self.wrapper.worker.model_runner)

    @property
    def runs(self) -> bool:
        """Whether it has a KV cache, and so may know of requests."""
        worker = getattr(self.wrapper, "worker", None)
        return getattr(getattr(worker, "model_runner", None), "kv_cache_config", None) is not None

    def forget_requests(self) -> None:
        """Whatever was in flight is gone, on every stage."""
        self.runner.forget()

    def restore(self, requests: list[Any], outputs: list[list[int]]) -> None:
        """Go on with `requests` too, which have generated `outputs`."""
        check_restored(requests, outputs, self._limits())
        self.runner.restore(requests, outputs)

    @property
    def device(self) -> str:
        """Such as `cpu`, or `cuda:0 NVIDIA H200`."""
        device = self.group.device
        name = current_platform.get_device_name(device.index or 0) if device.type != "cpu" else ""
        return f"{device} {name}".strip()

    def memory(self) -> Memory:
        """What this process holds now."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        on_device = torch.cuda.memory_reserved(self.group.device) if self.group.device.type == "cuda" else 0
        return Memory(pages * os.sysconf("SC_PAGE_SIZE"), on_device, self._kv_cache_bytes())

    def _kv_cache_bytes(self) -> int:
        caches = getattr(self.wrapper.worker.model_runner, "kv_caches", ())
        tensors = [cache for cache in caches if isinstance(cache, torch.Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def reply(self, step: int, output: Any, drafts: Callable[[], Any] | None = None) -> control.StepReply:
        """What the last stage answers: the step's output, and its `drafts`. Any thread."""
        drafted = codec.encode(drafts()) if drafts is not None else None
        return control.StepReply(step, plain_output.encode(on_host(output)), drafted)

    def drafts(self) -> Callable[[], Any] | None:
        """What the last stage has drafted after the step that it has just sampled; None: it does not speculate."""
        return self.runner.drafts() if self.config.speculative_config is not None else None

    @removes_broken_library
    def sample(self, grammar_output: Any, asked: control.Sample | None = None) -> Any:
        """Sample the step just run (last stage).

        Args:
            asked: the message that brought the mask; None: the step was to be sampled at once.
        Raises:
            MalformedError: the mask is none. Whatever vLLM raises.
        """
        if grammar_output is not None:
            check_grammar(grammar_output, self._limits())
        return self._finished(self.wrapper.sample_tokens(grammar_output))

    def _finished(self, output: Any) -> Any:
        """On CUDA a step's output may still be on its way to the host; who defers it waits elsewhere."""
        return output if self.runner.defers_output else on_host(output)


def on_host(output: Any) -> Any:
    """A step's output, once it is on the host."""
    from vllm.v1.outputs import AsyncModelRunnerOutput

    return output.get_output() if isinstance(output, AsyncModelRunnerOutput) else output


def first_device() -> torch.device:
    """Before vLLM's worker has chosen one."""
    return torch.device(current_platform.device_type)


def meeting_point() -> str:
    """A file, not a port: the processes of one stage are on one host."""
    return str(get_file_store_init_method())


def leave_group() -> None:
    """Take vLLM's groups of this stage apart, all ranks together, so that no shared memory outlives it."""
    parallel_state = importlib.import_module("vllm.distributed.parallel_state")
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


def partition(layers: LayerRange, stage: int, stages: int, total_layers: int) -> str:
    """VLLM_PP_LAYER_PARTITION under which `get_pp_indices` gives exactly `layers` to `stage`.

    Only this stage's entry has to be right; what lies before goes to slot 0, what lies after to the last.
    """
    slots = [0] * stages
    slots[0] += layers.start
    slots[stage] += len(layers)
    slots[-1] += total_layers - layers.end
    return ",".join(map(str, slots))
