"""What a check finds, and how all checks are run so that one that breaks does not take the others along."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

__all__ = ["LEVELS", "Check", "Finding", "examine", "ok", "problem", "warning"]

LEVELS = ("ok", "warning", "problem")


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what is the case, and what to do about it if it is not well."""

    subject: str
    level: str
    """One of LEVELS."""
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"ok": "✓", "warning": "!", "problem": "✗"}[self.level]
        return f"{mark} {self.subject}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


Check = Callable[[], Iterable[Finding]]


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, "ok", text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    return Finding(subject, "warning", text, remedy)


def problem(subject: str, text: str, remedy: str) -> Finding:
    return Finding(subject, "problem", text, remedy)


def examine(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Run the checks one after the other; a name goes with each, for the case that it fails itself."""
    for subject, check in checks:
        try:
            yield from check()
        except Exception as error:  # a machine is odd in ways nobody foresaw: that is a finding too
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            yield warning(subject, f"could not be looked at ({reason})", "please report this")
