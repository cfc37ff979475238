"""Rank 0 of a stage passes a grammar mask on to the others; a step that waits for one may turn out to need none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")

from zmqpp import control
from zmqpp.errors import MalformedError
from zmqpp.vllm.leading_worker import LeadingWorker

pytestmark = pytest.mark.vllm


def leader(told: list[Any], sampled: list[Any]) -> LeadingWorker:
    """A worker whose vLLM notes what it is to sample with."""
    worker = LeadingWorker.__new__(LeadingWorker)
    worker._ranks = SimpleNamespace(tell=told.append, check_after_error=lambda: None)  # type: ignore[assignment]
    worker.wrapper = SimpleNamespace(sample_tokens=sampled.append)  # type: ignore[assignment]
    worker.runner = SimpleNamespace(defers_output=True)  # type: ignore[assignment]
    worker._limits = lambda: None  # type: ignore[assignment, method-assign, return-value]
    return worker


def test_a_step_that_needs_no_mask_after_all_is_sampled_by_every_rank() -> None:
    """With async scheduling its request may have ended when the step was on its way already."""
    told, sampled = list[Any](), list[Any]()
    asked = control.Sample(7, b"")
    leader(told, sampled).sample(None, asked)
    assert (told, sampled) == ([asked], [None])


def test_what_is_no_mask_is_refused_before_the_others_hear_of_it() -> None:
    told, sampled = list[Any](), list[Any]()
    with pytest.raises(MalformedError, match="a grammar mask"):
        leader(told, sampled).sample("mask", control.Sample(7, b""))
    assert not told and not sampled
