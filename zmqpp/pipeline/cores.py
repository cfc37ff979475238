"""How the CPU stages of one machine use its cores: a few are lent to whichever stage computes, many are divided.

Divided, a stage's cores idle while its batch is elsewhere, and two batches of 8 read all weights twice where one of 16
reads them once. Lent, a stage computes with every core and soon lets go of them: its threads spin shortly between the
parallel regions of a step, where sleeping would cost more than it saves, and sleep between steps. Decodes then need
not be divided among batches either. Measured with 2 cores (docs/performance.md); where a stage's own part is larger
they are divided, unless the user asks for the other.
"""

from __future__ import annotations

import os

from zmqpp.errors import ConfigError
from zmqpp.pipeline.cgroup import cpu_limit

__all__ = ["VARIABLE", "core_environment", "usable_cores"]

VARIABLE = "ZMQPP_LEND_CORES"

_FEW = 4
"""A stage's own part would be less than this."""
_SPINS = "4000"
"""libgomp's turns before a thread sleeps: tens of microseconds, where its default is 300000."""


def core_environment(
    stages: int, ranks: int = 1, *, whole: bool = True, lends: bool | None = None
) -> dict[str, str]:
    """Variables for each of `stages` on this machine; what the user has set stays.

    Args:
        ranks: of each stage; they compute at the same time.
        whole: these are all stages of the pipeline, so its batches take turns here.
        lends: None: as ZMQPP_LEND_CORES says, or else the number of cores.
    Raises:
        ConfigError: ZMQPP_LEND_CORES is neither 0 nor 1.
    """
    cores = usable_cores()
    own = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    part = max(1, cores // (stages * ranks))
    lends = _lends(part) if lends is None else lends
    if stages == 1 or cores < 2 * ranks or "OMP_NUM_THREADS" in os.environ or not lends:
        own["OMP_NUM_THREADS"] = str(part)
    else:
        own |= {"OMP_NUM_THREADS": str(cores // ranks), "GOMP_SPINCOUNT": _SPINS}
        if whole:
            own["ZMQPP_BALANCE_BATCHES"] = "0"
    return {name: value for name, value in own.items() if name not in os.environ}


def _lends(part: int) -> bool:
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "0", "1"):
        raise ConfigError(
            f"{VARIABLE}={asked!r}: 1 lends all cores to the stage that computes, 0 divides them; "
            "leave it out to have it chosen"
        )
    return asked == "1" or (not asked and part < _FEW)


def usable_cores() -> int:
    """Not more than the control group gives time on: more threads would only wait for one another."""
    cores, limit = len(os.sched_getaffinity(0)), cpu_limit()
    return cores if limit is None else min(cores, max(1, round(limit)))
