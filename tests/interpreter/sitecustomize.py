"""On PYTHONPATH of a test's stages: Triton has a driver for this machine's CPU, as far as vLLM asks.

With TRITON_INTERPRET=1 kernels run as Python, and Model Runner V2 without a GPU.
"""

from __future__ import annotations

from types import SimpleNamespace


def _offer_cpu() -> None:
    try:
        from triton.backends import backends
    except ImportError:
        return
    driver = type("Driver", (), {"is_active": staticmethod(lambda: True)})
    backends.setdefault("cpu", SimpleNamespace(compiler=None, driver=driver))


_offer_cpu()
