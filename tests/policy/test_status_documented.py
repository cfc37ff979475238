"""docs/status.md names every field of the status and every metric, and its example is a status."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from zmqpp.watch import status
from zmqpp.watch.prometheus import render

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "status.md").read_text()
EXAMPLE = TEXT.partition("```json\n")[2].partition("```")[0]
STRUCTS = [
    kind
    for name in status.__all__
    if isinstance(kind := getattr(status, name), type) and issubclass(kind, msgspec.Struct)
]


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_field_of_the_status_is_documented(kind: type[msgspec.Struct]) -> None:
    missing = [field for field in kind.__struct_fields__ if f"`{field}`" not in TEXT]
    assert missing == []


def test_example_is_a_whole_status() -> None:
    read = msgspec.json.decode(EXAMPLE, type=status.PipelineStatus)
    given = msgspec.json.decode(EXAMPLE)
    assert set(given) == set(read.__struct_fields__)
    assert set(given["stages"][0]) == set(read.stages[0].__struct_fields__)
    for part in ("layers", "memory", "link", "spent", "last_step", "recent"):
        assert set(given["stages"][0][part]) == set(getattr(read.stages[0], part).__struct_fields__), part


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    text = render(msgspec.json.decode(EXAMPLE, type=status.PipelineStatus))
    made = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    table = TEXT.partition("## `/metrics`")[2].partition("Some questions")[0]
    documented = set(re.findall(r"`(zmqpp_\w+[a-z])[`{]", table))
    assert documented == made
