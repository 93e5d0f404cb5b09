"""What a run still does between SIGTERM and its exit: at most the step it is in, a validation that is due, one save."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from ldm import artifact
from ldm.training.runs import folder as run
from ldm.training.task import Task
from ldm.training.trainer.callbacks import SampleGrids
from tests.reliability.runs import assert_same_run, forked, steps, strike, train

RUN = Path("runs/vae/squares")
WORDS = ("trainer.max_steps=4", "samples.every_n_steps=2", "trainer.val_check_interval=2")
SAVE = ["checkpoint written", "model written"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing ends."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(folder):
        train("vae", *WORDS)
    return folder / RUN


def noted(log: Path) -> None:
    """Notes in `log` from now on: batches and validated ones as they begin, grids, and files of weights as they are
    opened."""

    def note(what: str) -> None:
        with log.open("a") as file:
            file.write(f"{what}\n")

    def opened(event: str, args: tuple[object, ...]) -> None:
        if event != "open" or not isinstance(args[0], str):
            return
        for ending, name in ((".ckpt", "checkpoint"), (".safetensors", "model")):
            if ending in args[0] and ".json" not in args[0]:
                note(f"{name} {'written' if isinstance(args[2], int) and args[2] & os.O_WRONLY else 'read'}")

    for owner, name, what in (
        (Task, "training_step", "step"),
        (Task, "validation_step", "validation"),
        (SampleGrids, "_write", "grid"),
    ):
        seen(owner, name, what, note)
    sys.addaudithook(opened)


def seen(owner: type, name: str, what: str, note) -> None:
    original = getattr(owner, name)

    def run(*args, **options):
        note(what)
        return original(*args, **options)

    setattr(owner, name, run)


def cut(number: int, log: Path, owner: object, name: str, n: int) -> list[str]:
    """Ends a run by a signal in the n-th call of `owner.name`; what it still did."""

    def blow() -> None:
        noted(log)
        os.kill(os.getpid(), number)

    def work() -> None:
        strike(owner, name, n, blow)
        train("vae", *WORDS)

    assert forked(work) == 128 + number and not (RUN / "DONE").exists()
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize(
    ("owner", "name", "n", "did", "at"),
    [
        (Task, "training_step", 1, SAVE, 1),
        (Task, "validation_step", 1, SAVE, 2),
        (Task, "on_train_batch_end", 3, SAVE, 3),
        (run, "state_of", 1, ["model written"], 2),  # between a checkpoint and its model
    ],
)
@pytest.mark.slow
def test_no_more_than_a_step_a_validation_that_is_due_and_one_save(here, owner, name, n, did, at):
    assert cut(signal.SIGTERM, here / "log", owner, name, n) == did
    assert steps(RUN)[-1] == at


@pytest.mark.parametrize(
    ("number", "owner", "name", "n", "did"),
    [
        (signal.SIGTERM, Task, "training_step", 2, ["validation", *SAVE]),  # a grid is due there too
        (signal.SIGTERM, Task, "training_step", 4, ["validation", *SAVE]),  # the last
        (signal.SIGKILL, artifact, "save", 2, []),  # the last checkpoint is there, its model isn't
    ],
)
def test_what_it_left_is_done_by_the_resumed_run(here, whole, number, owner, name, n, did):
    assert cut(number, here / "log", owner, name, n) == did
    train("vae", *WORDS, "resume=true")
    assert_same_run(whole, RUN, 4)
    grids = [{path.name: path.read_bytes() for path in (run / "samples").iterdir()} for run in (whole, RUN)]
    assert grids[0] == grids[1] and {"step-00000002.png", "step-00000004.png"} < set(grids[0])
    assert (RUN / "DONE").exists()
