"""What a stage can do before anyone tells it what to load: so that one that comes back is soon of use.

Nothing here is needed for anything but speed; what is not done now is done when it is asked for.
"""

from __future__ import annotations

import gc
import importlib
import json
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

__all__ = ["leave_alone", "warm_up"]

_MODULES = (
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.layers.quantization.online.base",
    "zmqpp.vllm.worker",
)


def warm_up(model: str) -> None:
    """Import what loading imports, and tell the garbage collector to leave all that alone.

    vLLM collects garbage twice while it loads; over a process full of modules that takes longer than a small model.

    Args:
        model: as it was given: a directory, or a name on a hub, whose architecture is not known yet.
    """
    for name in _MODULES:
        _import(name)
    _import_architecture(model)
    _register_kernels_once()
    resource_tracker.ensure_running()
    leave_alone()


def leave_alone() -> None:
    """What there is by now stays: the garbage collector shall not go through it between two steps."""
    gc.collect()
    gc.freeze()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None  # Another version of vLLM; or what uses it says so better than we can.


def _import_architecture(model: str) -> None:
    registry = _import("vllm.model_executor.models.registry")
    try:
        names = json.loads(Path(model, "config.json").read_bytes())["architectures"]
        module = registry.ModelRegistry.models[names[0]].module_name
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return
    _import(module)


def _register_kernels_once() -> None:
    """vLLM's worker registers them anew, after looking through every name of every module."""
    platform = type(current_platform)
    register = getattr(platform, "register_triton_kernel_overrides", None)
    if register is not None:
        register()
        platform.register_triton_kernel_overrides = classmethod(lambda cls: None)  # type: ignore[method-assign]
