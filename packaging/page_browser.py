"""Chromium and its driver, for the tests of the page. Standard library only.

Installed by Debian's own package manager where we may use it; elsewhere one line says what is missing, and the
tests that need it are skipped. Never a reason for a build to fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

PACKAGES = ("chromium", "chromium-driver")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# A network that swallows everything costs seconds, not minutes; another apt is waited for.
_LIMITS = ("-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=120")
_APT = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", *_LIMITS)


def is_there() -> bool:
    """Both the browser and its driver; what the tests look for, too."""
    return shutil.which("chromedriver") is not None and any(map(shutil.which, _BROWSERS))


def obstacle() -> str:
    """Why this process cannot install it; empty when it can."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get"
    return "" if os.geteuid() == 0 else "only root can install it"


def install(run: Callable[[list[str]], None]) -> None:
    """Raises what `run` raises when a command fails."""
    wanted = [*_APT, "install", "-y", "--no-install-recommends", *PACKAGES]
    try:
        run(wanted)
    except Exception:  # Fresh machines and images know no packages yet.
        run([*_APT, "update"])
        run(wanted)


def advice(reason: str) -> str:
    return (
        f"install: no Chromium for the tests of the page, they will be skipped: {reason} "
        f"(Debian, Ubuntu: sudo apt-get install {' '.join(PACKAGES)})"
    )
