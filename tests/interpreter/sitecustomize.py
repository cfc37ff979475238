"""On PYTHONPATH of a test's stages: Triton has a driver for this machine's CPU, as far as vLLM asks.

With TRITON_INTERPRET=1 kernels run as Python, and Model Runner V2 without a GPU. The interpreter takes masks of bools
only, and does not make all of them such: those of vLLM's kernels for grammars and drafts are numbers by then. torch's
compiler would ask that driver for more; vLLM gives it a function of tensor-parallel embeddings even in eager mode.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"


def _offer_cpu() -> None:
    from triton.backends import backends
    from triton.runtime.interpreter import InterpreterBuilder

    driver = type("Driver", (), {"is_active": staticmethod(lambda: True)})
    backends.setdefault("cpu", SimpleNamespace(compiler=None, driver=driver))
    plain_load, plain_store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return plain_load(self, pointers, mask, *rest)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return plain_store(self, pointers, value, mask, *rest)

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store


try:
    _offer_cpu()
except ImportError:
    pass  # Another Python, without Triton.
