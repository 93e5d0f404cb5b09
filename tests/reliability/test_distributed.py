"""Two processes that share each batch train what one does."""

import csv
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm import artifact
from ldm.common import ranks
from ldm.common.errors import UserError
from ldm.data.caches import latents
from ldm.model.loading import load
from ldm.training.averages import snapshots
from ldm.training.runs.checkpoints import Checkpoints
from ldm.training.task import Task
from ldm.training.trainer.fit import strategy_of
from tests.conditioning.encoders import write_t5
from tests.reliability.runs import assert_same_run, checkpoint, forked, signalled, steps, strike, train


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def together(world: int, stage: str, *words: str, trainer: str = "ddp", work: Callable | None = None) -> list[int]:
    """Exit codes of `world` processes started as torchrun starts them."""
    port, pids = free_port(), []
    words = (f"trainer={trainer}", *words, "trainer.devices=2")
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os._exit(forked(lambda: (work or train_and_hash)(stage, *words), Path(f"out-{rank}")))
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
def test_two_processes_train_what_one_does(here, stage_one, stage, monkeypatch):
    monkeypatch.setattr(latents, "PIECE", 64)  # both encode
    words = ["trainer.max_steps=20", "checkpoint.every_n_steps=10", "data.n=200", "trainer.limit_val_batches=8"]
    words.append("optimizer.lr=1e-4")  # rounding, of which Adam makes full steps, grows more slowly
    if stage == "ldm":
        words += [f"first_stage={stage_one}", "network.dropout=0"]
    train(stage, "name=one", "cache_dir=cache-one", *words)
    codes = together(2, stage, "name=two", "cache_dir=cache-two", *words)
    assert codes == [0, 0], Path("out-0").read_text() + Path("out-1").read_text()
    one, two = Path("runs") / stage / "one", Path("runs") / stage / "two"
    assert any("val/loss" in row for row in rows(one))
    assert_close_rows(rows(one), rows(two))
    saved = [checkpoint(run, 20) for run in (one, two)]
    assert distance(*saved, "") < 1e-4 and distance(*saved, "average.") < 1e-4
    assert Path("average-0").read_text() == Path("average-1").read_text()
    assert contents("cache-one") == contents("cache-two")
    if stage == "ldm":
        assert {Path(name).name for name in contents("cache-one")} == {"latents.json", "mean.npy", "std.npy"}
        assert all(torch.equal(*(s["state_dict"][k] for s in saved)) for k in ("latent_mean", "latent_std"))


CRITIC = ("loss.adversarial=0.5", "loss.adversarial_start=0", "loss.critic_layers=1", "loss.critic_channels=8")
CASES = {
    "equivariance": ("vae", *CRITIC, "loss.equivariance=0.5"),
    "text": ("ldm", "conditioner=text"),
    "frozen_text": ("ldm", "conditioner=frozen_text", "conditioner.text.tokenizer=byt5", "conditioner.text.path=t5"),
    "lora": ("ldm", "finetune=lora", "base=base", "rank=2", "targets=all", "text_encoder=true"),
    "controlnet": ("ldm", "finetune=controlnet", "base=base", "control=canny"),
    "textual_inversion": ("ldm", "finetune=textual_inversion", "base=base", "word=mine", "init=square"),
    "full": ("ldm", "finetune=full", "base=base"),
    "muon": ("ldm", "optimizer.name=muon"),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_whatever_one_does(here, stage_one, case):
    stage, *words = CASES[case]
    if case == "frozen_text":
        pytest.importorskip("transformers")
        write_t5(Path("t5"))
    plain = ("network.dropout=0", f"first_stage={stage_one}")
    if "base=base" in words:
        train("ldm", "name=base", "conditioner=text", "trainer.max_steps=2", *plain)
    elif stage == "ldm":
        words += plain
    one, two = both(stage, *words, "trainer.max_steps=8")
    assert_close_rows(rows(one), rows(two))
    assert distance(checkpoint(one, 8), checkpoint(two, 8), "") < 1e-4


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_two_processes_balance_the_critic_as_one_does(here):
    """The adaptive weight is of the gradients of the whole batch, and no mean of those of its parts."""
    one, two = both("vae", *CRITIC, "trainer.max_steps=2", "samples.n=1")
    assert_close_rows(rows(one), rows(two))
    assert float(rows(one)[0]["train/adversarial_weight"]) > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("stage", ["vae", "ldm"])
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_processes_train_in_bfloat16_what_one_does_to_its_rounding(here, stage_one, stage, trainer):
    """bfloat16 has 8 bits: each process rounds the gradient of its own part, to 2^-9 of it."""
    words = ("trainer.max_steps=8", "trainer.precision=bf16-mixed")
    words += ("network.dropout=0", f"first_stage={stage_one}") if stage == "ldm" else ()
    one, two = both(stage, *words, trainer=trainer)
    assert_close_rows(rows(one), rows(two), close=1e-2, norm=0.1)
    assert distance(checkpoint(one, 8), checkpoint(two, 8), "") < 1e-3


def both(stage: str, *words: str, trainer: str = "ddp") -> tuple[Path, Path]:
    """The runs of one process and of two."""
    train(stage, "name=one", *words)
    codes = together(2, stage, "name=two", *words, trainer=trainer, work=train)
    assert codes == [0, 0], Path("out-0").read_text() + Path("out-1").read_text()
    one, two = (Path("runs") / stage / name for name in ("one", "two"))
    assert any("val/loss" in row for row in rows(one))
    return one, two


def assert_close_rows(
    one: list[dict[str, str]], two: list[dict[str, str]], close: float = 1e-5, norm: float = 1e-3
) -> None:
    """The same figures at the same steps; the gradient's norm less exactly, since Adam makes steps of rounding."""
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert (value == "") == (b[name] == ""), name
            near = norm if name == "train/grad_norm" else close
            near *= 4 if "loss_q" in name else 1  # the mean of a quarter of the images
            assert not value or float(value) == pytest.approx(float(b[name]), abs=near, rel=near), name


def distance(one: dict, two: dict, part: str) -> float:
    """The squared distance of the weights whose names begin with `part`, as a share of their own.

    Adam makes steps of full length out of rounding where the true gradient is 0, as of a bias before a norm: so not of
    each weight, but of all together.
    """
    pairs = [(value, two["state_dict"][name]) for name, value in one["state_dict"].items() if name.startswith(part)]
    return sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(a.square().sum()) for a, _ in pairs)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_two_processes_that_share_the_weights_train_what_one_does(here, stage_one, stage):
    words = ["trainer.max_steps=6", "ema.lengths=[0.05,0.1]", "ema.snapshots=8"]
    if stage == "ldm":
        words += [f"first_stage={stage_one}", "network.dropout=0"]
    train(stage, "name=one", *words)
    one, two, cut = (Path("runs") / stage / name for name in ("one", "two", "cut"))
    assert together(2, stage, "name=two", *words, trainer="fsdp", work=train) == [0, 0], Path("out-0").read_text()
    assert_close_rows(rows(one), rows(two))
    a, b = checkpoint(one, 6), checkpoint(two, 6)
    assert a["ldm_weights"] == b["ldm_weights"] and a["ldm_model"] == b["ldm_model"]
    assert {name: value.shape for name, value in a["state_dict"].items()} == {
        name: value.shape for name, value in b["state_dict"].items()
    }
    assert distance(a, b, "") < 1e-4 and distance(a, b, "average.") < 1e-4
    for name, value in load(one / "model").state_dict().items():
        assert value.shape == load(two / "model").state_dict()[name].shape
    model, saved = load(two / "model"), load(two / "checkpoints" / "step-00000006.ckpt")
    assert artifact.model_hash(model) == artifact.model_hash(saved)
    for length in (0.05, 0.1):
        tracked, wanted = (snapshots.rebuild(run / "ema", length).weights for run in (two, one))
        assert {name: value.shape for name, value in tracked.items()} == {k: v.shape for k, v in wanted.items()}
    for run in (one, two):
        assert sorted(path.name for path in (run / "samples").iterdir())

    stopped = struck_train(Task, "training_step", 3, signalled(signal.SIGTERM))
    codes = together(2, stage, "name=cut", *words, trainer="fsdp", work=stopped)
    # The processes agree on a signal after its step, and read a step later that they do.
    assert codes == [143, 143] and steps(cut) == [2, 4], Path("out-0").read_text() + Path("out-1").read_text()
    codes = together(2, stage, "name=cut", *words, "resume=true", trainer="fsdp", work=train)
    assert codes == [0, 0], Path("out-0").read_text() + Path("out-1").read_text()
    assert_same_run(two, cut, 6)


def struck_train(*blow) -> Callable[..., None]:
    def work(stage: str, *words: str) -> None:
        strike(*blow)
        train(stage, *words)

    return work


def contents(cache: str) -> dict[str, bytes]:
    """What a cache holds, statistics and all."""
    return {str(path.relative_to(cache)): path.read_bytes() for path in Path(cache).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fsdp", {"optimizer": {"name": "muon"}}, "can't be used with optimizer.name=muon"),
        ("fsdp", {"finetune": {"class": "LoRA"}, "compile": True}, "with finetune=, compile=true"),
        ("deepspeed", {}, "isn't known here. Known: auto, ddp, fsdp"),
        ("fsdp_cpu_offload", {}, "isn't known here"),
    ],
)
def test_what_sharing_the_weights_cannot_do_is_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        strategy_of(name, {"optimizer": {}} | options, "32-true")


def test_the_first_process_of_a_second_machine_is_not_the_first(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert ranks.rank() == 0
    monkeypatch.setenv("NODE_RANK", "1")  # set by hand for Lightning's own launcher
    assert ranks.rank() > 0
    monkeypatch.delenv("NODE_RANK")
    monkeypatch.setenv("SLURM_PROCID", "0")  # of the shell in which Lightning's launcher starts others
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks.rank() == 1
    monkeypatch.setenv("RANK", "0")
    assert ranks.rank() == 0
