"""Pipelines are started once per module; what one ordinary vLLM answers is in reference.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from tests.integration.zygote import Zygote


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture
def zygote(imported: Zygote) -> Iterator[Zygote]:
    """Runs `vllm` command lines without importing vLLM anew for each; none outlives its test."""
    yield imported
    imported.end_rest()
