"""`make bench` adds what benchmarks need to the environment, once, without building zmqpp again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging" / "install.py"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("zmqpp_bench_install", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    for name in ("venv", "vllm", "zmqpp"):
        step = module.Step(name, name, "1", lambda: None)
        monkeypatch.setattr(module, f"{name}_step", lambda *_, step=step, **__: step)
    return module


def test_bench_extra_is_installed_once_and_only_when_asked_for(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "pip", lambda _, *wanted: installed.append(wanted))
    install.install(tmp_path)
    assert installed == []
    install.install(tmp_path, bench=True)
    install.install(tmp_path, bench=True)
    assert len(installed) == 1
    assert {"matplotlib", "pytest-benchmark", "rich"} <= set(installed[0])
    assert not {"nixl", "vllm"} & set(installed[0])
