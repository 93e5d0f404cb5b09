"""A resumed run is the run: the same bits as one that nothing interrupted."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from ldm import artifact
from ldm.model.loading import load
from ldm.training.task import Task
from tests.reliability.runs import (
    assert_same_run,
    checkpoint,
    forked,
    signalled,
    steps,
    struck_run,
    train,
)

KILL, TERM = signalled(signal.SIGKILL), signalled(signal.SIGTERM)


def run_of(stage: str, name: str) -> Path:
    return Path("runs") / stage / name


def words_of(stage: str, first_stage: Path, name: str, *more: str) -> tuple[str, ...]:
    return (f"name={name}", *((f"first_stage={first_stage}",) if stage == "ldm" else ()), *more)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("vae", ("loader.workers=1", "trainer.max_steps=7")),
        ("ldm", ("trainer.max_steps=7", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=6")),
    ],
)
def test_killed_and_stopped_at_any_step_it_ends_as_if_nothing_had_happened(here, stage_one, stage, options, capfd):
    train(stage, *words_of(stage, stage_one, "whole", *options))
    words = words_of(stage, stage_one, "cut", *options)
    batches = 2 if stage == "ldm" else 1
    assert forked(struck_run(stage, Task, "training_step", 4 * batches, KILL, *words)) == 137
    assert steps(run_of(stage, "cut")) == [2]
    capfd.readouterr()
    # resumes at 2 and gets the signal in the first half of its third step
    assert (
        forked(struck_run(stage, Task, "training_step", 3 * batches - batches + 1, TERM, *words, "resume=true")) == 143
    )
    output = capfd.readouterr()
    assert f"resumed runs/{stage}/cut at step 2 (sample {2 * batches * 8})" in output.out
    assert f"saved runs/{stage}/cut/checkpoints/step-00000005.ckpt" in output.err
    assert f"python train_{stage}.py logger=none" in output.err and output.err.rstrip().endswith("resume=true")
    train(stage, *words, "resume=true")
    assert f"at step 5 (sample {5 * batches * 8})" in capfd.readouterr().out
    assert_same_run(run_of(stage, "whole"), run_of(stage, "cut"), 7)


def test_the_total_of_a_run_limited_by_time_is_kept(here, monkeypatch):
    from ldm.training.optimization import learning_rate as schedule

    monkeypatch.setattr(schedule, "MEASURED_STEPS", 4)
    words = ("name=timed", "trainer.max_steps=-1", "trainer.max_time=00:01:00:00", "checkpoint.every_n_steps=50")
    first = struck_run("vae", Task, "training_step", 14, TERM, *words)  # measured by the 11th
    assert forked(first) == 143
    total = checkpoint(run_of("vae", "timed"), 14)["ldm_total_steps"]
    assert total and total > 14
    monkeypatch.setattr(schedule, "MEASURED_STEPS", 10**9)  # a second measurement would never come to an end
    assert forked(struck_run("vae", Task, "training_step", 2, TERM, *words, "resume=true")) == 143
    assert checkpoint(run_of("vae", "timed"), 16)["ldm_total_steps"] == total


def test_the_last_checkpoints_are_kept_and_every_nth(here):
    train("vae", "trainer.max_steps=11", "checkpoint.every_n_steps=1", "checkpoint.keep_every_n_steps=4")
    run = run_of("vae", "squares")
    assert steps(run) == [4, 8, 10, 11]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted(
        name for step in steps(run) for name in (f"step-{step:08d}.ckpt", f"step-{step:08d}.ckpt.json")
    )


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(here, capfd, caplog):
    words = ("trainer.max_steps=8", "name=cut")
    train("vae", "trainer.max_steps=8", "name=whole")
    assert forked(struck_run("vae", Task, "training_step", 6, TERM, *words)) == 143
    run = run_of("vae", "cut")
    assert steps(run) == [4, 6]
    path = run / "checkpoints" / "step-00000006.ckpt"
    shutil.copy(path, path.with_name("step-00000005.ckpt"))  # without its record
    path.write_bytes(path.read_bytes()[:-7])
    (run / "checkpoints" / ".step-00000008.ckpt.x.tmp").write_bytes(b"half")
    train("vae", *words, "resume=true")
    assert "step-00000006.ckpt is damaged" in caplog.text
    assert "resumed runs/vae/cut at step 4 (sample 32)" in capfd.readouterr().out
    assert_same_run(run_of("vae", "whole"), run, 8)
    assert not list(run.rglob("*.tmp"))


def random_blow(dice: random.Random) -> tuple[object, str, int]:
    """Where a process dies: at a training step, or while something is written, flushed or renamed."""
    if dice.random() < 0.4:
        return Task, "training_step", dice.randint(1, 5)
    if dice.random() < 0.2:
        return artifact, "save", dice.randint(1, 2)
    return os, dice.choice(["fsync", "replace"]), dice.randint(2, 25)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_twenty_kills_end_bit_equal(here, stage_one, stage):
    options = ("trainer.max_steps=40", "trainer.accumulate_grad_batches=2", "loader.workers=1", "seed=3")
    train(stage, *words_of(stage, stage_one, "whole", *options))
    words = words_of(stage, stage_one, "cut", *options, "resume=true")
    dice, kills = random.Random(0), 0
    while kills < 20 or not (run_of(stage, "cut") / "DONE").exists():
        if kills >= 20:
            train(stage, *words)
            break
        kills += forked(struck_run(stage, *random_blow(dice), KILL, *words)) == 137
        if steps(run_of(stage, "cut")):
            load(run_of(stage, "cut") / "checkpoints" / f"step-{steps(run_of(stage, 'cut'))[-1]:08d}.ckpt")
        if (run_of(stage, "cut") / "DONE").exists():
            assert_same_run(run_of(stage, "whole"), run_of(stage, "cut"), 40)
            shutil.rmtree(run_of(stage, "cut"))
    assert_same_run(run_of(stage, "whole"), run_of(stage, "cut"), 40)
