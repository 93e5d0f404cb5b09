"""A plugin of pytest: a test that would begin later than LDM_SECONDS after all were collected is skipped as cut."""

import os
import time

import pytest

SECONDS = "LDM_SECONDS"
CUT = "the time is over"
_end = float("inf")


def pytest_collection_finish() -> None:
    """Importing may take longer than the tests on a busy machine: it isn't counted."""
    global _end
    _end = time.monotonic() + float(os.environ.get(SECONDS, "inf"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() > _end:
        pytest.skip(CUT)
