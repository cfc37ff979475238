"""The C++ tests, then tests of the Python package over an extension built alike, under one of gcc's sanitizers.

    python -m tests.cpp asan|ubsan|tsan [PYTEST ARGUMENT ...]

Ends with 1 when a test fails or anything is reported, in whatever process.

All three work with Python and torch in one process, though neither is instrumented: the runtime is preloaded, leaks
are not looked for there (Python keeps what it likes until it exits; the C++ tests are searched for leaks), and
ThreadSanitizer sees what our code does, and every lock, but not what torch does to a tensor. See tsan.supp.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cpp.build import ROOT, BuildError, Kind, build, fixed_addresses, run_ctest

KINDS = {
    "asan": Kind("asan", "address", module=True),
    "ubsan": Kind("ubsan", "undefined", module=True),
    "tsan": Kind("tsan", "thread", module=True),
}
_SUITES = ["tests/conformance", "tests/unit/test_link.py"]
_TIMED_SUITES = ["tests/fault"]
"""Not under ThreadSanitizer, which makes everything too slow for their deadlines."""
_NOT_MEASURABLE = {
    "address": [
        "test_announced_sizes.py::test_largest_dict_that_is_allowed_takes_memory_only_as_its_bytes_come"
    ]
}
"""Of tests/fault: AddressSanitizer's own bookkeeping takes more memory than they allow."""
_RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}


def main(name: str, arguments: list[str]) -> int:
    kind = KINDS[name]
    try:
        print(f"{name}: building in {kind.folder.relative_to(ROOT)}", flush=True)
        build(kind)
        run_ctest(kind, capture=False)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return run_pytest(kind, arguments)


def run_pytest(kind: Kind, arguments: list[str]) -> int:
    """The suites with `kind`'s extension; 1 if a test failed or a report was written."""
    reports = kind.folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    command = [*fixed_addresses(kind), sys.executable, "-m", "pytest", "-q", "-m", "not vllm"]
    command += ["-p", "no:cacheprovider"]
    # The sanitized package before the checkout, which pytest puts in front of everything else.
    command += ["-p", "tests.cpp.only_sanitized", "-o", f"pythonpath={kind.package} ."]
    command += arguments or _SUITES + (_TIMED_SUITES if kind.sanitize != "thread" else [])
    command += [f"--deselect=tests/fault/{test}" for test in _NOT_MEASURABLE.get(kind.sanitize, [])]
    code = subprocess.run(command, env=environment(kind, reports), cwd=ROOT, check=False).returncode
    written = sorted(reports.iterdir())
    for report in written:
        print(f"---- {report.relative_to(ROOT)}\n{report.read_text(errors='replace')}", file=sys.stderr)
    if written:
        print(f"{kind.name}: {len(written)} processes reported something", file=sys.stderr)
    return 1 if code or written else 0


def environment(kind: Kind, reports: Path) -> dict[str, str]:
    """What makes a Python process run with the sanitized extension."""
    log = f"log_path={reports}/report"
    supp = Path(__file__).with_name("tsan.supp")
    # libstdc++ too: the runtime looks for what it intercepts before torch loads it.
    runtimes = [_library(_RUNTIMES[kind.sanitize]), _library("libstdc++.so")]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "PYTHONPATH": os.pathsep.join([str(kind.package), str(ROOT)]),
        "PYTHONSAFEPATH": "1",  # or children would find the zmqpp of the folder they start in
        "ZMQPP_SANITIZED": str(kind.package),
        "ASAN_OPTIONS": f"detect_leaks=0:{log}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:{log}",
        "TSAN_OPTIONS": f"suppressions={supp}:{log}",
    }


def _library(name: str) -> str:
    compiler = os.environ.get("CXX", "g++")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in KINDS:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
