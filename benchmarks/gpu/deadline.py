"""A plugin of pytest: tests that would begin after LDM_SECONDS are skipped, and say so."""

import os
import time

import pytest

SECONDS = "LDM_SECONDS"
CUT = "the time is over"
_end = time.monotonic() + float(os.environ.get(SECONDS, "inf"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() > _end:
        pytest.skip(CUT)
