"""Runs in the precisions that GPUs have: bfloat16, and float16 with its loss scale."""

import csv
from functools import partial
from pathlib import Path

import pytest
import torch

from ldm.commands import train_ldm, train_vae
from tests.training.test_conditions import config as emoji_config

TUNING = {
    "lora": ("finetune=lora", "rank=2", "targets=all", "text_encoder=true"),
    "full": ("finetune=full",),
    "controlnet": ("finetune=controlnet", "control=canny"),
    "textual_inversion": ("finetune=textual_inversion", "word=<mine>", "init=cat"),
}
MIXED = pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["adamw", "muon"])


def newest(run) -> dict:
    return torch.load(sorted((run / "checkpoints").glob("*.ckpt"))[-1], weights_only=True)


def assert_trained(run, steps: int) -> None:
    """Every weight is finite and in float32, and the optimizer made all steps but those that halved the scale."""
    state = newest(run)
    weights = [t for t in state["state_dict"].values() if t.is_floating_point()]
    assert all(t.isfinite().all() and t.dtype == torch.float32 for t in weights)
    assert state["global_step"] == steps
    states = state["optimizer_states"][0]["state"].values()
    made = {float(own["step"]) for own in states if "exp_avg" in own}
    assert made <= {steps - halvings(state)} and halvings(state) < steps / 2
    moved = [bool(own["momentum"].any()) for own in states if "momentum" in own]
    assert sum(moved) >= 0.9 * len(moved)  # in float16 gradients of 1e-14, as an untrained text encoder's, are 0


def halvings(state: dict, exponent: int = 16) -> float:
    """How often the loss scale was halved since it was 2^exponent."""
    scale = state.get("MixedPrecision", {}).get("scale", 2.0**exponent)
    return exponent - torch.tensor(scale).log2().item()


def test_stage_one_trains_in_bfloat16_as_it_is_configured(runs, train):
    """Clipped and fused, which Lightning's own way refuses."""
    run = train("vae", runs, "name=bf16", "trainer.precision=bf16-mixed", "trainer.max_steps=3")
    assert_trained(run, 3)
    assert "train/grad_norm" in (run / "metrics.csv").read_text()


def test_in_float16_the_scaler_leaves_out_steps_until_its_scale_fits(runs, train, monkeypatch):
    """Also with Muon, gradients of two batches, and the clipping in units of the true gradient."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**30))
    words = ["trainer.precision=16-mixed", "trainer.accumulate_grad_batches=2", "optimizer.name=muon"]
    words.append("trainer.val_check_interval=50")
    run = train("ldm", runs, "name=fp16", "trainer.max_steps=25", "checkpoint.every_n_steps=25", *words)
    state = newest(run)
    steps = {int(own["step"]) for own in state["optimizer_states"][0]["state"].values() if "exp_avg" in own}
    halved = halvings(state, 30)
    assert 2 <= halved < 24 and steps == {25 - halved}  # left out while it looked, then every step
    assert all(t.isfinite().all() for t in state["state_dict"].values())


def on_emoji(stage: str, runs: Path, *words: str) -> Path:
    made = emoji_config(f"train_{stage}", runs, *words)
    return {"vae": train_vae, "ldm": train_ldm}[stage].main(made)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory) -> Path:
    """Runs of both stages on emoji, the second with captions and attention."""
    folder = tmp_path_factory.mktemp("emoji") / "runs"
    on_emoji("vae", folder)
    on_emoji("ldm", folder, "conditioner=text", "network.attention=true")
    return folder


@pytest.mark.slow
@MIXED
@OPTIMIZERS
@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_both_stages_train(runs, emoji, train, precision, optimizer, stage):
    name = f"{precision}-{optimizer}"
    words = ("trainer.max_steps=20", f"trainer.precision={precision}", f"optimizer.name={optimizer}", f"name={name}")
    train(stage, runs, *words)
    assert_trained(runs / stage / name, 20)
    assert_trained(on_emoji(stage, emoji, *words), 20)


@pytest.mark.slow
@MIXED
@OPTIMIZERS
def test_the_critic_trains(runs, train, precision, optimizer):
    """With the adaptive weight of float32: float16 would round the gradient of a mean over pixels to 0."""
    words = ("trainer.max_steps=6", "loss.adversarial=0.5", "loss.adversarial_start=0", "loss.critic_channels=8")
    words += ("loss.critic_layers=1", f"optimizer.name={optimizer}", "optimizer.lr=1e-4")
    found = {}
    for name in ("32-true", precision):
        own = f"name=critic-{name}-{optimizer}-beside-{precision}"
        run = train("vae", runs, *words, f"trainer.precision={name}", own, "trainer.accumulate_grad_batches=2")
        assert_trained(run, 6)
        found[name] = [row["train/adversarial_weight"] for row in rows(run) if row["train/loss"]]
    for one, other in zip(*found.values(), strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.1)


@pytest.mark.slow
@MIXED
@OPTIMIZERS
@pytest.mark.parametrize("kind", TUNING)
def test_every_fine_tuning_trains(emoji, precision, optimizer, kind):
    words = (*TUNING[kind], "base=emoji", f"name={kind}-{precision}-{optimizer}", f"optimizer.name={optimizer}")
    words += ("trainer.max_steps=6", "optimizer.warmup_steps=1", "optimizer.lr=0.01", f"trainer.precision={precision}")
    assert_trained(on_emoji("ldm", emoji, *words), 6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_bfloat16_validates_as_float32_after_200_steps(runs, train, stage):
    losses = []
    for name in ("32-true", "bf16-mixed"):
        words = ("trainer.max_steps=200", "trainer.val_check_interval=200", "trainer.limit_val_batches=1.0")
        run = train(stage, runs, f"name=long-{name}", *words, f"trainer.precision={name}", "optimizer.lr=2e-3")
        losses.append(float(rows(run)[-1]["val/loss"]))
    print(stage, losses)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
