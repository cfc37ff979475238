"""Names of the calls over the ring that are the stage's own, not its vLLM worker's."""

from __future__ import annotations

__all__ = ["END_TRACE", "FORGET", "KV_CACHE", "LOAD", "RESTORE", "START_TRACE", "STATS", "WARM_UP"]

LOAD = "zmqpp.load"
"""Build the worker and load this stage's weights; given the place of each stage's first worker among all."""
KV_CACHE = "initialize_from_config"
"""vLLM's: here the worker makes its KV cache."""
WARM_UP = "compile_or_warm_up_model"
"""vLLM's last call before it serves."""
STATS = "zmqpp.stats"
"""This stage's link counters."""
RESTORE = "zmqpp.restore"
"""Requests that go on after a loss, several times if they are many; the hello before has made all be forgotten."""
FORGET = "zmqpp.forget"
"""Let go of every request. Between the ranks of a stage only."""
START_TRACE, END_TRACE = "zmqpp.start_trace", "zmqpp.end_trace"
"""Keep spans from now on; give them."""
