"""Which of vLLM's model runners the stages run: V1 or V2, the same on all of them.

Stage 0 decides, by its `VLLM_USE_V2_MODEL_RUNNER` or else by vLLM's own default for its platform (V2 where there is
Triton); the others hear it in the hello. Where V2 cannot be had it is V1, unless somebody said otherwise.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from zmqpp.errors import ConfigError, UnsupportedError
from zmqpp.vllm import compat, compat_v2

__all__ = ["adopt_runner", "check_runner", "forget_adopted", "prefer_runner", "runner_of"]

VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"
_adopted = False
"""The variable is not this stage's own word, but stage 0's."""


def runner_of(config: Any) -> Literal["V1", "V2"]:
    """The runner of a finished vLLM configuration."""
    return "V2" if config.use_v2_model_runner else "V1"


def prefer_runner() -> None:
    """Before vLLM makes its configuration: V1 where V2 cannot be had, and the variable leaves it open.

    Raises:
        UnsupportedError: the variable asks for V2.
    """
    import vllm.envs

    asked, why = vllm.envs.VLLM_USE_V2_MODEL_RUNNER, _needs_v1()
    if why and asked:
        raise _refused(why)
    if why and asked is None:
        os.environ[VARIABLE] = "0"


def check_runner(config: Any, engine_args: Any) -> None:
    """Settle what vLLM's `config` leaves open.

    vLLM's CPU platform switches async scheduling off, last of all; asked for by a flag it stays on.

    Raises:
        UnsupportedError: V2 where it cannot be had, or V1 with async scheduling.
    """
    asked, scheduling = bool(engine_args.async_scheduling), config.scheduler_config
    if runner_of(config) == "V1":
        if asked:
            raise UnsupportedError(
                f"--async-scheduling needs Model Runner V2 with external stages: set {VARIABLE}=1, or leave it out"
            )
        scheduling.async_scheduling = False  # Older versions of vLLM would have it.
        return
    if why := _needs_v1():
        raise _refused(why)
    scheduling.async_scheduling |= asked


def _needs_v1() -> str:
    """Why Model Runner V2 cannot be had; empty where it can."""
    from vllm.triton_utils import HAS_TRITON

    version = compat.vllm_version()
    if compat.minor(version) not in compat_v2.SUPPORTED_VLLM:
        return f"of vLLM {version} is not known to external stages, that of {' or '.join(compat_v2.SUPPORTED_VLLM)} is"
    if not HAS_TRITON:
        return "needs Triton, which has no driver here"
    return ""


def _refused(why: str) -> UnsupportedError:
    return UnsupportedError(f"Model Runner V2 {why}: set {VARIABLE}=0, on every stage")


def adopt_runner(runner: Literal["V1", "V2"], stage: int) -> None:
    """Take stage 0's runner, before this stage makes its configuration.

    Raises:
        ConfigError: this stage was started with the other one.
    """
    global _adopted
    import vllm.envs

    own = None if _adopted else vllm.envs.VLLM_USE_V2_MODEL_RUNNER
    if own is not None and own != (runner == "V2"):
        raise ConfigError(
            f"stage {stage} was started with {VARIABLE}={os.environ[VARIABLE]}, stage 0 runs Model Runner {runner}: "
            f"leave {VARIABLE} out on stage {stage} (stage 0 decides), or give both the same"
        )
    if own is None:
        os.environ[VARIABLE], _adopted = str(int(runner == "V2")), True


def forget_adopted() -> None:
    """Before this process begins anew: the next stage 0 may run the other one."""
    if _adopted:
        del os.environ[VARIABLE]
