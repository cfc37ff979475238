"""Decodes changed inputs where nothing may be imported, run or opened, and little memory taken; what was comes out.

Run by test_decoders.py in a process of its own: an audit hook cannot be taken away again, nor can a lower limit.
"""

from __future__ import annotations

import importlib
import resource
import sys

from tests.fuzz.decoders import TARGETS
from tests.fuzz.mutation import Mutator

ROOM_BYTES = 384 << 20
"""Of address space beyond what there is at the start."""
_RUNS = 4000
_BEFORE = 300
"""Inputs until what is made once has been made: caches, first errors."""
_HARMLESS = ("object.__getattr__", "object.__setattr__", "sys._getframe")
_OF_FILES = ("open", "os.", "shutil.", "tempfile.", "pathlib.")


def main() -> None:
    if "codec" in TARGETS:
        from zmqpp.vllm import compat

        for module in compat.WIRE_MODULES:  # a stage has them all by the time it decodes
            importlib.import_module(module)
    seen: set[str] = set()
    watched = [""]

    def hook(event: str, _: object) -> None:
        if watched[0] and not event.startswith(_HARMLESS):
            seen.add(f"{watched[0]}: {event}")

    sys.addaudithook(hook)
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115, PTH123
    most = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for name, target in TARGETS.items():
        mutator = Mutator(target.corpus(), seed=7)
        for run in range(_RUNS if name != "keys" else _BEFORE + 100):
            content = mutator.next()
            watched[0] = name if run >= _BEFORE else ""
            target.accept(content)
            watched[0] = ""
    for line in sorted(seen):
        if not (line.startswith("keys: ") and line.removeprefix("keys: ").startswith(_OF_FILES)):
            print(line)
    print("done")


if __name__ == "__main__":
    main()
