"""Two processes that share each batch train what one does."""

import csv
import os
import socket
import sys
from pathlib import Path

import pytest

from ldm import artifact
from ldm.training.checkpoints import Checkpoints
from tests.reliability.runs import checkpoint, forked, train


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def together(world: int, stage: str, *words: str) -> list[int]:
    """Exit codes of `world` processes started as torchrun starts them."""
    port, pids = free_port(), []
    words += ("trainer.devices=2", "trainer.strategy=ddp")
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os._exit(forked(lambda: train_and_hash(stage, *words), Path(f"out-{rank}")))
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def train_and_hash(stage: str, *words: str) -> None:
    """Leaves the hash of this process's own average weights in a file."""
    original = Checkpoints.on_train_end

    def on_train_end(self, trainer, pl_module) -> None:
        Path(f"average-{trainer.global_rank}").write_text(artifact.model_hash(pl_module.model()))
        original(self, trainer, pl_module)

    Checkpoints.on_train_end = on_train_end  # type: ignore[method-assign]
    train(stage, *words)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_two_processes_train_what_one_does(here, stage_one, stage):
    words = ["trainer.max_steps=20", "checkpoint.every_n_steps=10"]
    if stage == "ldm":
        words += [f"first_stage={stage_one}", "network.dropout=0"]
    train(stage, "name=one", *words)
    codes = together(2, stage, "name=two", *words)
    assert codes == [0, 0], Path("out-0").read_text() + Path("out-1").read_text()
    one, two = Path("runs") / stage / "one", Path("runs") / stage / "two"
    for a, b in zip(rows(one), rows(two), strict=True):
        for name, value in a.items():
            if value and not name.startswith("train/psnr"):  # the mean of logarithms isn't that of the mean
                assert float(value) == pytest.approx(float(b[name]), abs=1e-5), name
    # Adam makes steps of full length out of rounding where the true gradient is 0, as of a bias before a norm: so not
    # each weight, but all together.
    weights, others = (checkpoint(run, 20)["state_dict"] for run in (one, two))
    distance = sum(float((weights[name] - others[name]).square().sum()) for name in weights)
    assert distance < 1e-4 * sum(float(value.square().sum()) for value in weights.values())
    assert Path("average-0").read_text() == Path("average-1").read_text()
