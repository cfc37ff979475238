"""What `zmqpp check` says in the end: for people, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zmqpp.pipeline.check import Answer, Difference
from zmqpp.pipeline.state import StageState

__all__ = ["Outcome", "as_json", "as_text"]

_NARROW = 0.05
"""Natural logarithm: nearer than this, two tokens may change places when sums add up in another order."""


@dataclass(frozen=True)
class Outcome:
    """What came of a check; `expected` is None when there was nothing to compare with."""

    folder: str
    test_input: str
    states: Sequence[StageState]
    answer: Answer
    against: str | None = None
    expected: Answer | None = None
    difference: Difference | None = None


def as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "ok": outcome.difference is None,
        "folder": outcome.folder,
        "stages": [_stage(state) for state in outcome.states],
        "test_input": outcome.test_input,
        "answer": asdict(outcome.answer),
        "against": outcome.against,
        "expected": outcome.expected and asdict(outcome.expected),
        "difference": outcome.difference and asdict(outcome.difference),
    }


def as_text(outcome: Outcome) -> str:
    return f"\n{outcome.test_input}{outcome.answer.text}\n\n{_verdict(outcome)}"


def _verdict(outcome: Outcome) -> str:
    if outcome.expected is None:
        return f"✓ {len(outcome.states)} stages load and answer; to compare the tokens add --against MODEL"
    if outcome.difference is None:
        return f"✓ all {len(outcome.answer.token_ids)} tokens are those of {outcome.against} in one process"
    return _different(outcome.difference, outcome.expected, str(outcome.against))


def _different(difference: Difference, expected: Answer, against: str) -> str:
    mine, theirs = _shown(difference.here), _shown(difference.there)
    lines = [
        f"✗ token {difference.index} differs: {mine} here, {theirs} in {against}",
        f"  the test input goes on there: {expected.text!r}",
    ]
    if difference.margin is not None and difference.margin < _NARROW:
        lines.append(
            f"  its two likeliest tokens lie {difference.margin:.4f} apart (natural logarithm), so that rounding may "
            "have decided: try --dtype float32"
        )
    return "\n".join(lines)


def _shown(token: str | None) -> str:
    return "the end" if token is None else repr(token)


def _stage(state: StageState) -> dict[str, Any]:
    return {
        "stage": state.index,
        "layers": [state.start_layer, state.end_layer],
        "parameters": state.parameters,
        "size_bytes": state.size_bytes,
        "seconds": round(state.elapsed_s, 2),
        "lane": state.lane,
    }
