"""Which stages get what is asked of stage 0, or of all, anew."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from zmqpp.pipeline.orders import Restart
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan, StagePlan
from zmqpp.pipeline.rolling import Rolling

GIVEN = ("--max-num-seqs", "32", "--seed=1")


def plan() -> PipelinePlan:
    return PipelinePlan("m", 3, 15550, ApiEndpoint("127.0.0.1", 8000, "m"), arguments=GIVEN)


def concerned(before: list[StagePlan], stages: list[int] | None, *flags: str) -> list[tuple[str, ...]]:
    launcher: Any = SimpleNamespace(plan=plan())
    nobody: Any = None
    rolling = Rolling(launcher, nobody, nobody, 1.0)
    changed = rolling._concerned(before, Restart(stages, flags=list(flags)))
    assert [each.index for each in changed] == [1, 2]
    return [each.arguments for each in changed]


def test_the_others_get_the_flags_they_have_and_no_other() -> None:
    before = list(plan().stages)
    flags = ("--max-num-seqs", "16", "--api-key", "k", "--seed=2")
    assert concerned(before, [0], *flags) == [(*GIVEN, "--max-num-seqs", "16", "--seed=2")] * 2
    assert concerned(before, [0], "--api-key", "k") == [GIVEN, GIVEN]


def test_all_get_everything() -> None:
    assert concerned(list(plan().stages), None, "--block-size", "16") == [(*GIVEN, "--block-size", "16")] * 2


def test_what_an_earlier_order_gave_to_stage_0_does_not_stay_with_the_others() -> None:
    first, second, third = plan().stages
    before = [
        dataclasses.replace(first, arguments=(*GIVEN, "--max-num-seqs", "16")),
        dataclasses.replace(second, arguments=(*GIVEN, "--own", "--max-num-seqs", "16")),
        dataclasses.replace(third, arguments=(*GIVEN, "--max-num-seqs", "16")),
    ]
    assert concerned(before, [0], "--seed=3") == [(*GIVEN, "--own", "--seed=3"), (*GIVEN, "--seed=3")]
