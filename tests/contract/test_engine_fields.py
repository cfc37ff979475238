"""Every setting that vLLM has is shared by the stages, or it is known why not: a new one is somebody's decision."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from zmqpp.vllm import reasoning, settings

pytestmark = pytest.mark.vllm

ENGINE_ALONE = """
aggregate_engine_logging allowed_local_media_path allowed_media_domains custom_histogram_buckets
default_mm_loras disable_chunked_mm_input disable_hybrid_kv_cache_manager disable_log_stats ec_manager_config
enable_mamba_fine_grained_prefix_cache enable_mamba_shared_prefix_checkpoint enable_mfu_metrics
enable_logging_iteration_details enable_mm_processor_stats fail_on_environ_validation fault_tolerance_config
enable_fault_tolerance generation_config interleave_mm_strings io_processor_plugin kv_cache_metrics
kv_cache_metrics_sample kv_events_config log_config_file log_level logging_config long_prefill_token_threshold
long_prefill_token_threshold_adaptive max_num_active_seqs max_num_queued_reqs max_num_queued_tokens
max_num_scheduled_tokens media_io_kwargs mm_hasher_algorithm mm_ipc_gpu_memory_gb mm_processor_cache_gb
mm_processor_cache_type mm_processor_device mm_device_do_normalize mm_shm_cache_max_object_size_mb mm_tensor_ipc
otlp_traces_endpoint override_generation_config per_request_spec_decode_metrics performance_mode
prefill_schedule_interval prefix_cache_retention_interval prefix_caching_hash_algo prefix_match_unit
reasoning_parser reasoning_parser_plugin renderer_num_workers scheduler_cls scheduler_reserve_full_isl
scheduling_policy served_model_name show_hidden_metrics_for_version shutdown_timeout stream_interval
structured_outputs_config swa_bounded_replay tokens_only watermark skip_mm_profiling
spec_method spec_model spec_tokens _api_process_count _api_process_rank
"""
"""What stage 0's engine or server does, or makes of requests before a step. A performance mode sets what is shared."""

FIRST_STAGE = """
enable_mm_embeds limit_mm_per_prompt mm_processor_kwargs mm_encoder_only mm_encoder_tp_mode mm_encoder_attn_backend
mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path mm_encoder_fp8_scale_save_margin
video_pruning_rate video_pruning_method
"""
"""Of pictures and sound, which only stage 0 sees; others plan no memory for them."""

OWN = """
model model_weights tokenizer hf_config_path skip_tokenizer_init tokenizer_mode trust_remote_code download_dir
safetensors_load_strategy safetensors_prefetch_num_threads safetensors_prefetch_block_size load_format config_format
revision code_revision hf_token model_class_overrides tokenizer_revision allow_deprecated_quantization
ignore_patterns model_loader_extra_config pt_load_map_location use_tqdm_on_load
cudagraph_capture_sizes max_cudagraph_capture_size compilation_config attention_config attention_backend kernel_config
mamba_config ir_op_priority moe_backend linear_backend sparse_indexer_topk_backend all2all_backend
disable_cascade_attn enable_flashinfer_autotune gdn_prefill_backend kda_prefill_backend kda_decode_backend
cudagraph_metrics enable_layerwise_nvtx_tracing collect_detailed_traces jit_monitor_mode jit_monitor_verbose
specialize_active_lora additional_config worker_cls worker_extension_cls profiler_config
offload_backend cpu_offload_gb cpu_offload_params offload_group_size offload_num_in_group offload_prefetch_step
offload_params gpu_memory_utilization device_ids numa_bind numa_bind_nodes numa_bind_cpus
enable_sleep_mode sleep_mode_offload_cudagraph sleep_preserve_parameter_names enable_cumem_allocator
enable_nccl_comm_suspend max_parallel_loading_workers ray_workers_use_nsight
disable_custom_all_reduce enable_shm_tensor_arena distributed_timeout_seconds cpu_distributed_timeout_seconds
tensor_parallel_size enable_batch_sharded_sampling enable_hc_sp enable_expert_parallel enable_ep_weight_filter
enable_dbo ubatch_size dbo_decode_token_threshold dbo_prefill_token_threshold
enable_eplb eplb_config expert_placement_strategy engram_config diffusion_config
mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size mamba_cache_mode replayssm_buffer_len use_replayssm
mamba_backend mamba_ssu_algorithm enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds
"""
"""Of a machine, its kernels and its files. What a model is, is compared in the greeting."""

REFUSED = """
prefill_context_parallel_size decode_context_parallel_size dcp_comm_backend dcp_q_replicate
dcp_kv_cache_interleave_size cp_kv_cache_interleave_size nnodes node_rank master_addr master_port
data_parallel_size data_parallel_rank data_parallel_start_rank data_parallel_size_local data_parallel_address
data_parallel_rpc_port data_parallel_hybrid_lb data_parallel_external_lb data_parallel_multi_port_external_lb
data_parallel_backend dp_sync_interval disable_nccl_for_dp_synchronization enable_elastic_ep elastic_ep_max_dp_size
pipeline_parallel_size distributed_executor_backend
kv_transfer_config ec_transfer_config kv_offloading_size kv_offloading_backend weight_transfer_config
aux_output_config enable_return_routed_experts
"""
"""With external stages, or without effect where the first of their kind is."""


def places() -> list[list[str]]:
    return [[*settings._GETTERS], *(names.split() for names in (ENGINE_ALONE, FIRST_STAGE, OWN, REFUSED))]


def test_every_setting_of_vllm_has_its_place() -> None:
    from vllm.engine.arg_utils import EngineArgs

    known = {name for place in places() for name in place}
    new = sorted(field.name for field in dataclasses.fields(EngineArgs) if field.name not in known)
    assert not new, "must all stages have them? then settings.py; else say here why not"


def test_none_has_two() -> None:
    names = [name for place in places() for name in place]
    assert sorted(names) == sorted(set(names)) and reasoning.NAME in settings._GETTERS
