"""Runs in the precisions that GPUs have: bfloat16, and float16 with its loss scale."""

from functools import partial

import torch


def newest(run) -> dict:
    return torch.load(sorted((run / "checkpoints").glob("*.ckpt"))[-1], weights_only=True)


def assert_trained(run, steps: int) -> None:
    """Every weight is finite and in float32, and the optimizer made its steps."""
    state = newest(run)
    weights = [t for t in state["state_dict"].values() if t.is_floating_point()]
    assert all(t.isfinite().all() and t.dtype == torch.float32 for t in weights)
    assert state["global_step"] == steps
    made = {float(own["step"]) for own in state["optimizer_states"][0]["state"].values() if "exp_avg" in own}
    assert made == {steps}


def scale_of(run) -> float:
    return newest(run)["MixedPrecision"]["scale"]


def test_stage_one_trains_in_bfloat16_as_it_is_configured(runs, train):
    """Clipped and fused, which Lightning's own way refuses."""
    run = train("vae", runs, "name=bf16", "trainer.precision=bf16-mixed", "trainer.max_steps=3")
    assert_trained(run, 3)
    assert "train/grad_norm" in (run / "metrics.csv").read_text()


def test_in_float16_the_scaler_leaves_out_steps_until_its_scale_fits(runs, train, monkeypatch):
    """Also with Muon, gradients of two batches, and the clipping in units of the true gradient."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**30))
    words = ["trainer.precision=16-mixed", "trainer.accumulate_grad_batches=2", "optimizer.name=muon"]
    run = train("ldm", runs, "name=fp16", "trainer.max_steps=25", "checkpoint.every_n_steps=25", *words)
    state = newest(run)
    steps = {int(own["step"]) for own in state["optimizer_states"][0]["state"].values() if "exp_avg" in own}
    halved = 30 - torch.tensor(scale_of(run)).log2().item()
    assert 2 <= halved < 24 and steps == {25 - halved}  # left out while it looked, then every step
    assert all(t.isfinite().all() for t in state["state_dict"].values())
