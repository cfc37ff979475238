"""Models that ship with zmqpp: real weights, small enough to start in seconds on a laptop."""

from __future__ import annotations

from pathlib import Path

__all__ = ["docs_llama"]


def docs_llama() -> Path:
    """The folder of `docs-llama`: 8 layers, 4M parameters, bfloat16 (see its README.md)."""
    return Path(__file__).parent / "docs-llama"
