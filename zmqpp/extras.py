"""Packages that only the command line needs; `import zmqpp` does without them."""

from __future__ import annotations

import importlib.util

from zmqpp.errors import ConfigError

__all__ = ["require"]


def require(*packages: str) -> None:
    """Raise ConfigError that names the first of `packages` that is not installed, and how to install all."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"{name} is missing: pip install 'zmqpp[cli]'")
