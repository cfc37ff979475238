"""The names of vLLM's Model Runner V2 that zmqpp leans on. In a process of its own: vLLM's CPU worker changes torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from zmqpp.vllm import compat, compat_v2

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        compat.minor(compat.vllm_version()) not in compat_v2.SUPPORTED_VLLM,
        reason="V2 of another vLLM is refused",
    ),
]

LOOK = """
import inspect, json
from zmqpp.vllm import compat, compat_v2
from zmqpp.vllm.pp_handler import RingHandler
moved = [name for name in compat_v2.SYMBOLS if not compat.exists(name)]
theirs = compat_v2.modules()[0].PPHandler
verbs = lambda kind: {
    name: list(inspect.signature(member).parameters)
    for name, member in vars(kind).items() if inspect.isfunction(member) and not name.startswith("_")
}
print(json.dumps([moved, verbs(theirs), verbs(RingHandler), list(inspect.signature(theirs).parameters)]))
"""


@pytest.fixture(scope="module")
def found() -> list[Any]:
    looked = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=300)
    assert looked.returncode == 0, looked.stderr[-3000:]
    names: list[Any] = json.loads(looked.stdout.splitlines()[-1])
    return names


def test_vllm_has_the_names_of_v2_that_we_use(found: list[Any]) -> None:
    assert found[0] == []


def test_our_handler_has_the_methods_of_vllms(found: list[Any]) -> None:
    theirs, ours = found[1], found[2]
    assert theirs.keys() == ours.keys()
    for name in theirs:
        assert theirs[name] == ours[name], name


def test_the_handler_is_made_from_what_ours_is_made_from(found: list[Any]) -> None:
    assert found[3] == ["max_num_reqs", "num_speculative_steps", "device"]
