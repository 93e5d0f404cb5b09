"""Two processes, each on a pretended device, train what one does on the CPU."""

import sys
from pathlib import Path

import pytest

from ldm.model.loading import load
from tests.pretend.lightning import OnPretendedDevices, pretended_runs
from tests.reliability.runs import train
from tests.reliability.test_distributed import distance, together, train_and_hash

WORDS = ["trainer.max_steps=4", "checkpoint.every_n_steps=4", "trainer.log_every_n_steps=50", "loader.workers=0"]


def pretended_and_hash(stage: str, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pretended_runs(patch, OnPretendedDevices) as watch:
        train_and_hash(stage, *words)
    _, *steps = watch.steps
    assert len(steps) == 4 and not any(steps), [dict(step) for step in steps]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_two_devices_train_what_one_process_does(here, stage_one):
    words = [*WORDS, f"first_stage={stage_one}", "network.dropout=0"]
    train("ldm", "name=one", *words)
    codes = together(2, "ldm", "name=two", *words, work=pretended_and_hash)
    assert codes == [0, 0], Path("out-0").read_text() + Path("out-1").read_text()
    one, two = ({"state_dict": load(Path("runs/ldm") / name).state_dict()} for name in ("one", "two"))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert distance(one, two, "") < 1e-6
    assert Path("average-0").read_text() == Path("average-1").read_text()
