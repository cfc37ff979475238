"""Every private name of vLLM that zmqpp leans on, in one place, and what for.

`SYMBOLS` is what the contract test walks: when vLLM moves one of them, that test fails by its name, and so
does start-up (`compat.check_vllm`). Nothing else in zmqpp imports from vLLM's internals by a name not listed here
(but for those of Model Runner V2, in `compat_v2.py`, and what `warm.py` tries and can do without).
"""

from __future__ import annotations

__all__ = ["SYMBOLS"]

SYMBOLS: dict[str, str] = {
    # flags and dispatch
    "vllm.entrypoints.cli.serve:ServeSubcommand.cmd": "external stages and workers branch off here",
    "vllm.engine.arg_utils:EngineArgs.add_cli_args": "our flag group is added to its parser",
    "vllm.engine.arg_utils:EngineArgs.create_engine_config": "pipeline options become a vLLM config here",
    "vllm.engine.arg_utils:AsyncEngineArgs.from_cli_args": "a worker stage's settings",
    "vllm.v1.engine.exceptions:EngineDeadError": "carries the lost stage to the HTTP client",
    "vllm.config.quantization:QUANT_KEY_NAMES": "the words of --quantization-config",
    "vllm.config.quantization:resolve_quantization_config": "what --quantization alone would mean",
    # executor
    "vllm.v1.executor.abstract:Executor.collective_rpc": "overridden by ours",
    "vllm.v1.executor.abstract:Executor.execute_model": "overridden by ours",
    "vllm.v1.executor.abstract:Executor.sample_tokens": "overridden by ours",
    "vllm.v1.executor.abstract:Executor.register_failure_callback": "overridden by ours",
    "vllm.v1.executor.abstract:Executor.check_health": "overridden by ours",
    "vllm.v1.outputs:EMPTY_MODEL_RUNNER_OUTPUT": "the answer to a step without tokens",
    "vllm.v1.outputs:AsyncModelRunnerOutput.get_output": "a CUDA step's output",
    "vllm.v1.core.sched.output:SchedulerOutput": "a step",
    "vllm.v1.core.sched.output:NewRequestData.from_request": "a request that goes on after a loss",
    "vllm.v1.core.sched.scheduler:Scheduler._make_cached_request_data": "repeats no tokens that the stages know",
    "vllm.v1.kv_cache_interface:MambaSpec": "layers with a state, which a stage may have none of",
    "vllm.v1.kv_cache_interface:UniformTypeKVCacheSpecs": "the same, several in a group",
    "vllm.v1.kv_cache_interface:EncoderOnlyAttentionSpec": "layers for which the scheduler has no blocks",
    "vllm.v1.core.sched.scheduler:Scheduler.reset_prefix_cache": "preempts all that ran when a stage was lost",
    "vllm.v1.core.sched.scheduler:Scheduler._update_request_as_session": "computes one anew whose cache was lost",
    "vllm.v1.core.sched.scheduler:Scheduler.reset_encoder_cache": "forgets what a lost stage computed of images",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.reset_encoder_cache": "the same, on a stage",
    "vllm.v1.request:RequestStatus": "which requests had begun",
    "vllm.v1.engine.core:EngineCore._initialize_kv_caches": "from here on our executor knows its engine",
    "vllm.v1.engine.core:EngineCore.preprocess_add_request": "refuses what a stage would refuse",
    "vllm.v1.engine.core:EngineCore._process_aborts_queue": "aborts that came during recovery",
    "vllm.v1.engine.core:EngineCoreProc._send_error_outputs_to_client": "ends requests whose adapter is missing",
    "vllm.v1.core.sched.scheduler:Scheduler.finish_requests": "the same",
    "vllm.v1.engine.core:EngineCoreProc._handle_client_request": "wakes the engine to recover",
    "vllm.v1.engine:EngineCoreRequestType": "the same",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_states": "forgets and restores requests",
    "vllm.v1.core.sched.output:GrammarOutput": "a step's grammar mask",
    "vllm.config.reasoning:ReasoningConfig": "which tokens begin and end thinking",
    "vllm.v1.sample.thinking_budget_state:ThinkingBudgetStateHolder.sync_batch": "forgets none that comes back",
    "vllm.v1.worker.gpu_input_batch:maybe_create_thinking_budget_state_holder": "replaced: makes ours",
    # worker
    "vllm.v1.worker.worker_base:WorkerWrapperBase": "holds the stage's worker",
    "vllm.v1.worker.gpu_worker:init_worker_distributed_environment": "replaced: torch's world is this stage alone",
    "vllm.v1.worker.gpu_worker:Worker.execute_model": "sends and receives activations through the pipeline group",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": "its intermediate_tensors are allocated by us",
    "vllm.distributed.parallel_state:GroupCoordinator.isend_tensor_dict": "overridden by our pipeline group",
    "vllm.distributed.parallel_state:GroupCoordinator.irecv_tensor_dict": "overridden by our pipeline group",
    "vllm.distributed.parallel_state:_PP": "replaced by our pipeline group",
    "vllm.distributed.parallel_state:init_distributed_environment": "torch's world of one stage",
    "vllm.distributed.parallel_state:ensure_model_parallel_initialized": "torch's groups of one stage",
    "vllm.distributed.parallel_state:get_tp_group": "carries the activations to a stage's other workers",
    "vllm.distributed.parallel_state:GroupCoordinator.broadcast": "the same",
    "vllm.distributed.parallel_state:destroy_model_parallel": "leaves no shared memory of a stage's workers behind",
    "vllm.distributed.parallel_state:destroy_distributed_environment": "the same",
    "vllm.distributed.utils:get_pp_indices": "reads VLLM_PP_LAYER_PARTITION",
    "vllm.utils.network_utils:get_file_store_init_method": "torch's world of one needs no port",
    "vllm.platforms:current_platform": "device of this stage",
    # weights
    "vllm.model_executor.model_loader.default_loader:safetensors_weights_iterator": "reads only this stage's tensors",
    "vllm.model_executor.model_loader.default_loader:DefaultModelLoader.load_weights": "names the model being loaded",
    "vllm.model_executor.models.utils:get_pp_missing_layer_names": "modules that live on another stage",
    "vllm.model_executor.models.utils:PPMissingLayer": "stands where such a module would be",
    "vllm.config:set_current_vllm_config": "context of worker construction",
    "vllm.config:WatermarkConfig": "compared by what it says of itself, which is not its key",
    "vllm.config:ModelConfig.get_total_num_hidden_layers": "the model's layers",
    "vllm.config:VllmConfig.use_v2_model_runner": "the same on every stage",
    "vllm.triton_utils:HAS_TRITON": "Model Runner V2 needs it",
}
