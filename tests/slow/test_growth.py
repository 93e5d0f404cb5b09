"""Stage two's own memory doesn't grow with the data."""

from pathlib import Path

import pytest

from benchmarks import scale


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells RssAnon")
def test_a_hundred_times_the_latents_take_no_more_anonymous_memory():
    few, many = (scale.of_size(n, steps=5)["RssAnon, MB"] for n in (10_000, 1_000_000))
    print(f"RssAnon: {few:.0f} MB with 10,000 latents, {many:.0f} MB with 1,000,000")
    assert many < 1.1 * few
