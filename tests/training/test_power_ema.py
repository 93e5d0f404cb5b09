"""Power-function averages: their constants, their profile, and any length rebuilt from two that were stored."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ldm
from ldm.commands import rebuild_ema
from ldm.common.errors import UserError
from ldm.training.averages import power_ema, snapshots
from ldm.training.averages.power_ema import combination, decay_of, gamma_of, length_of


def test_lengths_and_exponents_are_the_papers():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005) and gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    for length in (0.01, 0.07, 0.25):
        assert length_of(gamma_of(length)) == pytest.approx(length)
    for wrong in (0.0, -0.1, 0.3):
        with pytest.raises(UserError, match="share of the run"):
            gamma_of(wrong)


def test_an_average_has_a_power_functions_profile():
    """The weight of step s at step t is s^gamma over the sum, up to the discretisation; the initial weights vanish."""
    gamma, end = gamma_of(0.1), 4000
    weights = torch.zeros(end, dtype=torch.float64)
    for step in range(1, end + 1):
        weights *= decay_of(step, gamma)
        weights[step - 1] = 1 - decay_of(step, gamma)
    s = torch.arange(1, end + 1, dtype=torch.float64)
    wanted = s**gamma / (s**gamma).sum()
    assert weights.sum().item() == pytest.approx(1) and decay_of(1, gamma) == 0
    torch.testing.assert_close(weights, wanted, rtol=0, atol=0.002 * wanted.max().item())
    mean = (weights * s).sum()
    spread = (weights * (s - mean) ** 2).sum().sqrt() / end
    assert spread.item() == pytest.approx(0.1, rel=1e-3)


def trajectory(kind: str, steps: int) -> torch.Tensor:
    """Weights (T, D) of a run: a walk whose steps die out, or a way to a minimum with noise around it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, 64, generator=generator, dtype=torch.float64)
    if kind == "walk":
        return (noise * torch.linspace(0, 1.5, steps, dtype=torch.float64).cos()[:, None]).cumsum(0) / 10 + 1
    t = torch.linspace(0, 5, steps, dtype=torch.float64)[:, None]
    return 1 + noise[0] * (-t).exp() + 0.05 * noise


def tracked(path: torch.Tensor, length: float) -> list[torch.Tensor]:
    """The average after each step, in float32, by the code that trains."""
    module, average, out = nn.Linear(64, 1, bias=False), nn.Linear(64, 1, bias=False), []
    for step, weights in enumerate(path, 1):
        module.weight.data.copy_(weights)
        power_ema.update([average], [length], module, step)
        out.append(average.weight.detach().clone())
    return out


@pytest.mark.parametrize("kind", ["walk", "descent"])
def test_any_length_is_rebuilt_from_two(kind):
    steps, most = 1500, 64
    path = trajectory(kind, steps)
    stored = {length: tracked(path, length) for length in (0.05, 0.1)}
    every = snapshots.interval(steps, most)
    kept = sorted({*range(every, steps + 1, every), steps})
    assert 32 <= len(kept) <= most + 1
    pairs = [(length, step) for step in kept for length in stored]
    for target in (0.04, 0.07, 0.15):
        direct = tracked(path, target)[-1].double()
        shares = combination([p[0] for p in pairs], [p[1] for p in pairs], target)
        rebuilt = sum(x * stored[length][step - 1].double() for x, (length, step) in zip(shares, pairs, strict=True))
        error = ((rebuilt - direct).norm() / direct.norm()).item()
        nearest = min(((stored[k][s - 1] - direct).norm() / direct.norm()).item() for k, s in pairs)
        assert error < 1e-4
        assert nearest > 100 * error, (target, nearest, error)


def test_what_was_tracked_is_itself():
    shares = combination([0.05, 0.1, 0.05, 0.1], [50, 50, 100, 100], 0.1)
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-8)
    earlier = combination([0.05, 0.1, 0.05, 0.1], [50, 50, 100, 100], 0.05, 50)
    torch.testing.assert_close(earlier, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), rtol=0, atol=1e-8)


def test_the_interval_doubles_and_keeps_what_was_kept():
    for step in range(1, 3000):
        every = snapshots.interval(step, 16)
        assert step // every <= 16 and (every == 1 or step / (every // 2) > 16)
    assert snapshots.interval(64, 64) == 1 and snapshots.interval(65, 64) == 2
    assert math.log2(snapshots.interval(10**6, 64)).is_integer()


def test_a_run_stores_its_averages_and_another_length_is_a_run_of_its_own(runs, train):
    words = ["ema.lengths=[0.05,0.1]", "ema.snapshots=8", "trainer.max_steps=18", "optimizer.lr=0.01", "ema.decay=0"]
    words += ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=36", "samples.every_n_steps=0"]
    run = train("ldm", runs, "name=power", *words)
    assert snapshots.stored_steps(run / "ema") == [4, 8, 12, 16, 18]  # optimizer steps, not batches
    tracked_too = train("ldm", runs, "name=tracked", *words, "ema.lengths=[0.1]")
    (made,) = rebuild_ema.main(["run=power", "length=0.1", f"runs_dir={runs}"])
    assert made == runs / "ldm" / "power-ema-0.1" and (made / "DONE").exists() and (made / "config.yaml").exists()
    model, direct = ldm.load(made), snapshots.rebuild(tracked_too / "ema", 0.1)
    state = model.state_dict()
    assert direct.lengths == [0.1] and len(direct.weights) > 20
    for name, weight in direct.weights.items():
        torch.testing.assert_close(state[name], weight, rtol=1e-4, atol=1e-6)
    other = ldm.load(run).state_dict()
    assert any(not torch.allclose(state[name], other[name], atol=1e-4) for name in direct.weights)
    assert model(labels=[3], output="pt").isfinite().all()
    with pytest.raises(UserError, match="overwrite=true"):
        rebuild_ema.main(["run=power", "length=0.1", f"runs_dir={runs}"])
    line = [sys.executable, "-m", "ldm", "rebuild-ema", "run=power", "length=0.08", f"runs_dir={runs}"]
    assert subprocess.run(line, cwd=Path(__file__).parents[2]).returncode == 0, "in a process that loaded nothing else"


def test_what_rebuild_refuses(runs):
    place = f"runs_dir={runs}"
    for words, message in (
        (["run=digits", "length=0.1", place], "ema.lengths"),
        (["run=digits", "lenght=0.1", place], "Did you mean 'length'"),
        (["run=digits", place], "needs run="),
        (["run=digits", "length=long", place], "give a number"),
        (["run=digits", "length=0.1,0.2", "name=x", place], "one run"),
    ):
        with pytest.raises(UserError, match=message):
            rebuild_ema.main(words)
