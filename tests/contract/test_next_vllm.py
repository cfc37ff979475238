"""The private names of vLLM, in the sources of a release that is not supported yet: what a step up has to mend.

`python3 packaging/vllm_source.py 0.33.0` fetches them, without installing anything; without them this is skipped.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.contract.sources import is_in_source

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from zmqpp.vllm import compat
from zmqpp.vllm.adapter_slots import PLACES

pytestmark = pytest.mark.vllm
BUILD = Path(__file__).resolve().parents[2] / "build"
FETCHED = sorted(BUILD.glob("vllm-*-source")) + [
    Path(given) for given in os.environ.get("ZMQPP_VLLM_SOURCE", "").split(":") if given
]


SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"


def installed_root() -> Path:
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.origin is not None
    return Path(found.origin).parents[1]


@pytest.mark.parametrize("symbol", compat.SYMBOLS)
def test_reading_finds_what_importing_does(symbol: str) -> None:
    assert is_in_source(installed_root(), symbol)
    assert not is_in_source(installed_root(), symbol + "_that_is_not_there")


def test_one_place_is_there_where_adapters_are_kept_out() -> None:
    assert places(installed_root()).count(True) == 1


@pytest.mark.skipif(not FETCHED, reason="no sources: python3 packaging/vllm_source.py 0.33.0")
@pytest.mark.parametrize("root", FETCHED, ids=lambda root: root.name)
def test_a_release_to_come_has_the_names_we_use(root: Path) -> None:
    missing = [symbol for symbol in compat.SYMBOLS if not is_in_source(root, symbol)]
    assert missing == []
    assert any(places(root))
    assert [module for module in compat.WIRE_MODULES if not is_module(root, module)] == []


def places(root: Path) -> list[bool]:
    """Which of PLACES there are."""
    return [all(is_in_source(root, f"{SCHEDULER}.{name}") for name in names) for names in PLACES]


def is_module(root: Path, name: str) -> bool:
    base = root.joinpath(*name.split("."))
    return base.with_suffix(".py").exists() or (base / "__init__.py").exists()
