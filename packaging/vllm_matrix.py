"""The tests that lean on vLLM, over each version that zmqpp supports, each in an environment of its own.

    python3 packaging/vllm_matrix.py [--vllm 0.30 0.31] [--tests tests/contract ...]

Versions: SUPPORTED_VLLM of zmqpp/vllm/compat.py. Environments are build/vllm-VERSION; they are kept, and brought up to
date by packaging/install.py. A table comes last; the exit status is 1 when a test failed, or a version could not be
installed. ZMQPP_LONG=1 adds the tests that take minutes. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPAT = ROOT / "zmqpp" / "vllm" / "compat.py"
TESTS = ("tests/contract", "tests/integration")
AT_A_TIME = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]  # as `make test`
_END_S = 120.0


@dataclass(frozen=True)
class Row:
    """What became of one version."""

    vllm: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    note: str = ""

    @property
    def is_good(self) -> bool:
        return self.passed > 0 and not self.failed and not self.note


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    known = supported()
    parser = argparse.ArgumentParser(prog="vllm_matrix.py", allow_abbrev=False)
    parser.add_argument("--vllm", nargs="+", default=known, metavar="VERSION")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), metavar="PATH")
    given = parser.parse_args()
    if unknown := [version for version in given.vllm if version not in known]:
        parser.error(f"--vllm {unknown[0]}: zmqpp supports {', '.join(known)}")
    rows = [run(version, given.tests) for version in given.vllm]
    print(table(rows))
    return 0 if all(row.is_good for row in rows) else 1


def supported() -> list[str]:
    """As the code states it, once; read without importing it, as nothing may be installed yet."""
    for node in ast.parse(COMPAT.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SUPPORTED_VLLM":
            return list(ast.literal_eval(node.value))
    raise SystemExit(f"{COMPAT} does not state SUPPORTED_VLLM")


def run(version: str, tests: list[str]) -> Row:
    started = time.monotonic()
    venv, report = ROOT / "build" / f"vllm-{version}", ROOT / "build" / f"vllm-{version}.xml"
    print(f"== vLLM {version}", flush=True)
    install = [sys.executable, str(ROOT / "packaging" / "install.py"), "--vllm", version, str(venv)]
    if call(install):
        return Row(version, 0, 0, 0, time.monotonic() - started, "could not be installed")
    report.unlink(missing_ok=True)
    started = time.monotonic()
    command = [str(venv / "bin" / "python"), "-m", "pytest", *AT_A_TIME, f"--junit-xml={report}", *tests]
    code = call(command)
    return read(version, report, code, time.monotonic() - started)


def call(command: list[str]) -> int:
    """Its exit code; it ends with us, as by Ctrl-C, so that the servers that tests have started end too."""
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            return process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait(_END_S)
            raise


def read(version: str, report: Path, code: int, seconds: float) -> Row:
    """From pytest's report; without one it did not come to its end."""
    if not report.exists():
        return Row(version, 0, 0, 0, seconds, f"pytest ended with {code}")
    suites = xml.etree.ElementTree.parse(report).getroot().iter("testsuite")
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    failed = counts["failures"] + counts["errors"]
    passed = max(0, counts["tests"] - failed - counts["skipped"])
    note = f"pytest ended with {code}" if code and not failed else ""
    return Row(version, passed, failed, counts["skipped"], seconds, note)


def table(rows: list[Row]) -> str:
    lines = [f"{'vLLM':8}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}"]
    for row in rows:
        counts = f"{row.passed:8}{row.failed:8}{row.skipped:9}{row.seconds:9.0f}"
        lines.append(f"{row.vllm:8}{counts}  {row.note}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
