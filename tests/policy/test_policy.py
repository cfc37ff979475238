"""Rules the code base keeps: names, errors, imports, sizes of files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zmqpp
from zmqpp import _engine, errors

ROOT = Path(__file__).resolve().parents[2]
TRANSPORT = (
    "errors",
    "config",
    "endpoint",
    "keys",
    "_port_owner",
    "_shown",
    "_numpy_types",
    "_manifest",
    "_arrival",
    "_packing",
    "_sources",
    "_manifest_writer",
    "_manifest_reader",
    "_tensors",
    "_slices",
    "_opening",
    "_link_log",
    "_routes",
    "_wakeups",
    "tickets",
    "transport",
    "communicator",
)

# module of the transport -> modules of zmqpp it may import. Source: ARCHITECTURE.md.
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "endpoint": {"errors"},
    "keys": {"errors"},
    "_port_owner": set(),
    "_shown": set(),
    "_numpy_types": {"errors", "_shown"},
    "_manifest": {"_engine"},
    "_arrival": {"errors", "_engine"},
    "_packing": {"errors", "_engine", "_manifest"},
    "_manifest_writer": {"errors", "_arrival", "_manifest", "_numpy_types", "_packing"},
    "_manifest_reader": {"errors", "_engine", "_arrival", "_manifest", "_numpy_types", "_packing", "_shown"},
    "_tensors": {"_engine", "_arrival", "_manifest", "_manifest_writer", "_manifest_reader"},
    "_slices": {"errors"},
    "_opening": {"errors", "_engine", "config", "endpoint", "keys", "_port_owner", "_arrival"},
    "_link_log": {"_engine"},
    "_routes": set(),
    "_wakeups": {"errors", "_engine"},
    "_sources": {"_engine"},
    "tickets": {"errors", "_engine", "_wakeups"},
    "transport": {
        "errors",
        "_engine",
        "config",
        "endpoint",
        "_arrival",
        "_manifest_writer",
        "_tensors",
        "_opening",
        "_link_log",
        "_routes",
        "_sources",
        "_wakeups",
        "tickets",
    },
    "communicator": {"errors", "config", "_opening", "_slices", "tickets", "transport"},
}
# folder of csrc -> folders it may include.
LAYERS = {
    "base": {"base"},
    "wire": {"base", "wire"},
    "net": {"base", "net"},
    "device": {"base", "device"},
    "pack": {"base", "device", "pack"},
    "memory": {"base", "device", "memory"},
    "engine": {"base", "wire", "net", "device", "memory", "engine"},
    "bind": {"base", "wire", "net", "device", "memory", "pack", "engine", "bind"},
}


def test_public_names_are_these() -> None:
    assert sorted(zmqpp.__all__) == [
        "Link",
        "TransportConfig",
        "ZeroMQCommunicator",
        "ZmqppError",
        "__version__",
    ]
    for name in zmqpp.__all__:
        assert getattr(zmqpp, name) is not None
    with pytest.raises(AttributeError):
        zmqpp.no_such_name  # noqa: B018


def test_every_engine_code_becomes_its_python_class() -> None:
    table = _engine.error_table()
    for index, (code, name) in enumerate(table.items()):
        with pytest.raises(errors.ZmqppError) as caught:
            _engine.raise_code(index)
        assert type(caught.value).__name__ == name
        assert (caught.value.code, caught.value.op) == (code, "test")
    with pytest.raises(IndexError):
        _engine.raise_code(len(table))


def test_error_tree_in_the_docstring_is_the_real_one() -> None:
    drawn = set(re.findall(r"\b([A-Z]\w+(?:Error|Timeout))\b", errors.__doc__ or ""))
    real = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert real == drawn - {"ValueError", "TypeError", "TimeoutError"}
    assert issubclass(errors.ConfigError, ValueError) and issubclass(errors.UnsupportedError, TypeError)
    assert issubclass(errors.DeadlineError, TimeoutError)


@pytest.mark.parametrize("module", TRANSPORT)
def test_imports_go_one_way(module: str) -> None:
    found = set()
    for node in ast.walk(ast.parse((ROOT / "zmqpp" / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "zmqpp":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zmqpp."):
            found.add((node.module or "").removeprefix("zmqpp.").partition(".")[0])
    assert found <= ALLOWED[module]


@pytest.mark.parametrize("folder", LAYERS)
def test_cpp_layers_include_downwards_only(folder: str) -> None:
    for path in sorted((ROOT / "csrc" / folder).iterdir()):
        included = set(re.findall(r'#include "(\w+)/', path.read_text()))
        assert included <= LAYERS[folder], path.name


def test_engine_threads_know_nothing_of_python() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        if path.parent.name != "bind":
            assert "Python.h" not in path.read_text() and "pybind11" not in path.read_text(), path.name


def test_files_stay_readable() -> None:
    files = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cc")]
    files += [ROOT / "zmqpp" / f"{module}.py" for module in TRANSPORT]
    for path in files:
        assert len(path.read_text().splitlines()) <= 450, path.name


def test_every_header_says_who_owns_blocks_and_fails() -> None:
    for path in (ROOT / "csrc").rglob("*.h"):
        top = path.read_text().partition("#pragma once")[0]
        assert "Blocks?" in top or path.parent.name == "bind" or path.name in ("stats.h", "outgoing.h"), (
            path.name
        )


def test_import_does_no_work() -> None:
    code = """
import sys, time
started = time.perf_counter()
import zmqpp
took = time.perf_counter() - started
loaded = [name for name in ("torch", "zmq", "numpy", "zmqpp._engine", "vllm") if name in sys.modules]
print(took, loaded)
sys.exit(bool(loaded) or took > 0.2)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_that_runs_code_is_imported() -> None:
    for path in (ROOT / "zmqpp").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            )
            assert not {"pickle", "cloudpickle", "marshal", "shelve"} & set(names), path.name


# package -> packages of zmqpp it may import, beside the words that all share. Source: ARCHITECTURE.md.
TOOLS = {
    "checkpoint": set(),
    "watch": set(),
    "pipeline": {"checkpoint", "watch"},
    "gateway": {"watch"},
    "doctor": {"checkpoint", "pipeline"},
    "cli": {"checkpoint", "watch", "pipeline", "gateway", "doctor", "models"},
}
SHARED = {
    "errors",
    "extras",
    "config",
    "endpoint",
    "keys",
    "layers",
    "units",
    "version",
    "_port_owner",
    "_shown",
}
# doctor asks whether the extension loads, and which versions of vLLM the plugin works with.
EXTRA = {"software.py": {"_opening", "_engine", "vllm"}}


@pytest.mark.parametrize("package", TOOLS)
def test_tools_import_neither_torch_nor_vllm_and_one_another_one_way(package: str) -> None:
    for path in (ROOT / "zmqpp" / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                top, _, rest = module.partition(".")
                assert top not in ("torch", "vllm", "transformers"), f"{path.name}: {module}"
                inner = rest.partition(".")[0]
                if top == "zmqpp" and inner:
                    assert inner in TOOLS[package] | SHARED | {package} | EXTRA.get(path.name, set()), (
                        f"{path.name}: {module}"
                    )


@pytest.mark.parametrize("package", [*TOOLS, "vllm"])
def test_tools_files_stay_readable(package: str) -> None:
    for path in (ROOT / "zmqpp" / package).glob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path.name


def test_every_command_shows_an_example_and_has_a_file_of_its_own() -> None:
    from zmqpp.cli import _COMMANDS

    for command in _COMMANDS:
        name = command.__name__.rpartition(".")[2]
        shown = subprocess.run(
            [sys.executable, "-m", "zmqpp", name, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        assert f"zmqpp {name}" in shown.stdout.partition("example")[2], (
            f"zmqpp {name} --help shows no example"
        )
