"""The private names of vLLM that zmqpp leans on, against the installed vLLM: a move fails here, by name."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from zmqpp.vllm import compat, compat_v2

PACKAGE = Path(compat.__file__).parent
pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("symbol", compat.SYMBOLS)
def test_vllm_has_the_name_we_use(symbol: str) -> None:
    assert compat.exists(symbol), f"vLLM {compat.vllm_version()} has no {symbol}: {compat.SYMBOLS[symbol]}"


def test_the_installed_version_is_supported() -> None:
    assert compat.minor(compat.check_vllm()) in compat.SUPPORTED_VLLM


def test_every_name_imported_from_vllm_is_listed() -> None:
    listed = (
        {symbol.partition(":")[0] for symbol in compat.SYMBOLS | compat_v2.SYMBOLS}
        | set(compat.WIRE_MODULES)
        | PUBLIC
    )
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm"):
                assert node.module in listed, (
                    f"{path.name} imports from {node.module}, which symbols.py does not list"
                )


PUBLIC = {"vllm.logger", "vllm.config", "vllm.platforms", "vllm.engine.arg_utils", "vllm.utils.system_utils"}
"""Modules whose use by plugins vLLM documents, or that only name a process or a logger."""


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_pipeline_group_has_the_signatures_it_overrides() -> None:
    from vllm.distributed.parallel_state import GroupCoordinator

    from zmqpp.vllm.group import PipelineGroup

    for name in ("isend_tensor_dict", "irecv_tensor_dict"):
        assert parameters(getattr(PipelineGroup, name)) == parameters(getattr(GroupCoordinator, name)), name


def test_the_worker_waits_for_the_second_handle_on() -> None:
    from vllm.v1.worker.gpu_worker import Worker

    source = inspect.getsource(Worker.execute_model)
    assert "handles[1:]" in source
    assert "irecv_tensor_dict" in source


def test_the_partition_variable_still_decides_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.utils import get_pp_indices

    from zmqpp.layers import LayerRange
    from zmqpp.vllm.worker import PARTITION_VARIABLE, partition

    for stage, layers in enumerate([LayerRange(0, 1), LayerRange(1, 6), LayerRange(6, 8)]):
        monkeypatch.setenv(PARTITION_VARIABLE, partition(layers, stage, 3, 8))
        assert get_pp_indices(8, stage, 3) == (layers.start, layers.end)


def test_the_line_for_a_person_is_a_line_of_its_own() -> None:
    """vLLM gives its processes' output a name, and before 0.31 all that they print too."""
    named = "from vllm.utils.system_utils import decorate_logs; decorate_logs('APIServer')"
    said = "from zmqpp.vllm import failure; failure.say('it ended')"
    ended = subprocess.run([sys.executable, "-c", f"{named}; {said}"], capture_output=True, text=True)
    assert "zmqpp: error: it ended" in ended.stderr.splitlines(), ended


def test_our_even_split_is_vllms() -> None:
    from vllm.distributed.utils import get_pp_indices

    from zmqpp.layers import even_ranges

    for total in (4, 7, 8, 32, 61):
        for stages in range(2, min(total, 7)):
            ours = [(layers.start, layers.end) for layers in even_ranges(total, stages)]
            assert ours == [get_pp_indices(total, stage, stages) for stage in range(stages)], (total, stages)
