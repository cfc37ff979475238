"""The tests written in C++, under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import pytest

from tests.cpp.build import CTEST, BuildError, build, run_ctest


@pytest.mark.timeout(900)  # compiles everything the first time
def test_cpp_tests_and_fuzz_corpora_pass_under_the_sanitizers() -> None:
    try:
        build(CTEST)
        run_ctest(CTEST, capture=True)
    except BuildError as error:
        pytest.fail(str(error), pytrace=False)
