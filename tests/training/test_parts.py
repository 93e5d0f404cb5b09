"""The small parts of training: average, learning rate, time, the losses' conventions."""

import copy
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

import ldm
from ldm.common.errors import UserError
from ldm.evaluation import stage_one
from ldm.training import vae_run
from ldm.training.averages import ema
from ldm.training.optimization import learning_rate as schedule
from ldm.training.optimization.learning_rate import LearningRate, TimeBudget, parse_time
from ldm.training.regularizers import KLTerm, equivalents
from ldm.training.trainer.callbacks import SampleGrids
from ldm.training.vae_task import VAETask, psnr


def test_the_ramp_keeps_first_weights_out_of_short_runs():
    assert [ema.ramp(n, 0.9) for n in (1, 2, 10, 1000)] == [2 / 11, 3 / 12, 11 / 20, 0.9]


def test_the_average_is_a_frozen_copy_and_follows():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = ema.clone(network)
    assert not average.training and not any(p.requires_grad for p in average.parameters()) and network.training
    before = copy.deepcopy(average)
    with torch.no_grad():
        network[0].weight.add_(1)
    network[1].running_mean.fill_(3)
    ema.update(average, network, 0.75)
    torch.testing.assert_close(average[0].weight, before[0].weight + 0.25)
    assert average[1].running_mean.tolist() == [3, 3]  # buffers aren't averaged


def test_the_learning_rate_warms_up_and_falls_to_its_final_share():
    rate = LearningRate(2.0, warmup_steps=4, schedule="cosine", final=0.1, total_steps=24)
    assert [rate(i) for i in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert rate(14) == pytest.approx(1.1) and rate(24) == pytest.approx(0.2) == rate(100)
    line = LearningRate(2.0, warmup_steps=0, schedule="linear", total_steps=10)
    assert [line(i) for i in (0, 5, 10)] == pytest.approx([2.0, 1.0, 0.0])
    assert LearningRate(2.0, 0, "constant", total_steps=10)(9) == 2.0
    assert LearningRate(2.0, 0, "cosine")(9) == 2.0  # the run's length isn't known yet
    with pytest.raises(UserError, match="constant, cosine, linear"):
        LearningRate(1.0, schedule="cosin")


def test_a_time_budget_counts_again_when_the_machine_gets_faster_or_slower(monkeypatch):
    def run(seconds_of_step, most=None) -> tuple[float, list[int], list[float]]:
        """Seconds, printed totals and learning rates of a run of 100 s, whose step n takes seconds_of_step(n)."""
        now, totals, rates = [0.0], [], []
        monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: now[0]))
        budget = TimeBudget(timedelta(seconds=100), 0.0, reserve=0.0, most=most)
        trainer = MagicMock(global_step=0)
        looks = []
        trainer.strategy.broadcast = lambda value: looks.append(trainer.global_step) or value
        trainer.print = lambda text: totals.append(int(text.split()[0])) if "fit into" in text else printed.append(text)
        printed = []
        module = SimpleNamespace(learning_rate=LearningRate(1.0, warmup_steps=20))
        budget.on_train_start(trainer, module)
        while not (total := module.learning_rate.total_steps) or trainer.global_step < total:
            rates.append(module.learning_rate(trainer.global_step))
            now[0] += seconds_of_step(trainer.global_step)
            trainer.global_step += 1
            budget.on_train_batch_end(trainer, module)
        assert printed == ([f"trains for 100 s, or to step {most}, whichever comes first"] if most else [])
        assert len([step for step in looks if step <= 50]) <= 8  # processes wait for each other at each
        return now[0], totals, rates

    def falls_without_a_jump(rates) -> bool:
        steps = [a - b for a, b in pairwise(rates[20:])]
        return min(steps) >= 0 and max(steps) < 0.02 and rates[-1] < 1e-3

    spent, totals, rates = run(lambda n: 0.25)
    assert spent == 100 and totals == [400] and falls_without_a_jump(rates)
    spent, totals, rates = run(lambda n: 0.5 if n < 60 else 0.25)  # busy at first
    assert spent == pytest.approx(100, abs=0.5) and totals == [200, 340] and falls_without_a_jump(rates)
    spent, totals, rates = run(lambda n: 0.25 if n < 60 else 0.5)  # busy from then on
    assert spent == pytest.approx(100, abs=0.5) and totals == [400, 230] and falls_without_a_jump(rates)
    spent, totals, rates = run(lambda n: 200)
    assert len(rates) == 1 and spent == 200  # no step could be measured in time
    spent, totals, rates = run(lambda n: 30)  # each step is looked at where there is time for few
    assert len(rates) == 4 and spent == 120
    spent, totals, rates = run(lambda n: 0.25, most=300)  # the steps end first
    assert spent == 75 and len(rates) == 300 and falls_without_a_jump(rates)
    spent, totals, rates = run(lambda n: 0.25, most=500)  # the time does
    assert spent == 100 and len(rates) == 400 and falls_without_a_jump(rates)
    spent, totals, rates = run(lambda n: 0.25 if n < 60 else 0.5, most=300)  # the time does, which isn't known at first
    assert spent == pytest.approx(100, abs=0.5) and totals[-1] == 230 and falls_without_a_jump(rates)
    _, totals, rates = run(lambda n: 0.25, most=40)  # before anything is measured
    assert totals == [] and len(rates) == 40 and 0 < rates[-1] < 0.01


def test_a_fall_continues_from_where_it_is():
    rate = LearningRate(2.0, warmup_steps=0, schedule="linear", total_steps=10)
    rate.end_at(30, 5)
    assert [rate(i) for i in (5, 10, 30)] == pytest.approx([1.0, 0.8, 0.0])
    rate.end_at(20, 15)
    assert [rate(i) for i in (15, 20)] == pytest.approx([0.6, 0.0])
    rate = LearningRate(2.0, warmup_steps=20, schedule="linear", total_steps=40)
    rate.end_at(120, 10)  # in the warm-up
    assert [rate(i) for i in (19, 20, 70, 120)] == pytest.approx([2.0, 2.0, 1.0, 0.0])


def test_times():
    assert parse_time("01:02:03:04") == parse_time({"days": 1, "hours": 2, "minutes": 3, "seconds": 4})
    assert parse_time("00:00:08:00") == timedelta(minutes=8)
    for wrong in ("8 minutes", "08:00", {"minuts": 3}, 5):
        with pytest.raises(UserError, match="DD:HH:MM:SS"):
            parse_time(wrong)


@pytest.mark.parametrize(("z", "multipliers", "beta"), [(4, (1, 1, 1, 1), 2.0833e-8), (3, (1, 1, 1), 6.25e-8)])
def test_beta_is_printed_as_ldm_counts_it(z, multipliers, beta):
    """LDM's kl_weight of 1e-6 for RGB at f8 z4 and f4 z3."""
    vae = ldm.AutoencoderKL(3, z, channels=8, multipliers=multipliers)
    assert "kl_weight of 1e-06 " in equivalents(beta, vae)


def test_the_loss_is_the_evidence_lower_bound_up_to_a_factor():
    torch.manual_seed(0)
    vae = ldm.AutoencoderKL(1, 2, channels=8, multipliers=(1, 1))
    task = VAETask(vae, None, 0.02, learning_rate=LearningRate(1.0))
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    loss, logged = task.losses({"image": images, "position": torch.arange(3)}, task.average)
    posterior = task.average.encode(images)
    decoded = task.average.decode(posterior.mode())
    std = float(equivalents(0.02, vae).split("standard deviation ")[1].split()[0])
    likelihood = torch.distributions.Normal(decoded, std).log_prob(images)
    constant = torch.distributions.Normal(0, std).log_prob(torch.tensor(0.0)) * images.numel()
    bound = likelihood.sum() - constant - posterior.kl().sum()
    assert loss.item() == pytest.approx(-bound.item() * 2 * std**2 / images.numel(), rel=2e-2)  # std is printed short
    errors = (decoded - images).square().mean((1, 2, 3))
    torch.testing.assert_close(logged["psnr"], psnr(errors).mean())  # not that of the mean error


def test_beta_rises_over_its_warmup_and_validation_has_the_whole():
    torch.manual_seed(0)
    task = VAETask(
        ldm.AutoencoderKL(1, 2, channels=8, multipliers=(1, 1)), None, 0.5, None, 10, learning_rate=LearningRate(1.0)
    )
    batch = {"image": torch.rand(3, 1, 8, 8) * 2 - 1, "position": torch.arange(3)}
    loss, logged = task.losses(batch, task.trained)  # the first of ten steps
    assert loss.item() == pytest.approx((logged["mse"] + 0.05 * logged["kl"]).item())
    loss, logged = task.losses(batch, task.average)
    assert loss.item() == pytest.approx((logged["mse"] + 0.5 * logged["kl"]).item())
    assert [KLTerm(2.0, n).beta_at(7) for n in (0, 4, 16)] == [2, 2, 1]


def test_psnr_is_of_images_whose_peak_is_2():
    assert psnr(torch.tensor(0.04)).item() == pytest.approx(20)
    assert psnr(torch.tensor(0.0)).isfinite()


def test_a_run_continues_without_images_that_arent_numbers(tmp_path, caplog):
    folder = SimpleNamespace(samples=tmp_path)
    shown = SampleGrids(folder, lambda task: torch.full((1, 1, 4, 4), torch.inf), 1)
    shown.on_train_end(MagicMock(global_step=3, is_global_zero=True, loggers=[]), nn.Linear(1, 1))
    assert "no images at step 3: the generated images hold infinite values" in caplog.text
    assert not list(tmp_path.iterdir())


def test_an_autoencoder_whose_images_are_no_numbers_is_reported(tmp_path, capsys):
    vae = ldm.AutoencoderKL(1, 2, channels=8, multipliers=[1])
    vae.decoder.conv_out.bias.data.fill_(torch.inf)
    vae.preprocess = ldm.images.Preprocess(1, 8, 8)
    with pytest.raises(UserError, match="infinite values or NaN"):
        ldm.sample_prior(vae, 1, (8, 8))
    vae_run.save_prior(vae, {"samples": {"n": 1}, "seed": 0, "batch_size": 1}, tmp_path / "prior.png")
    assert "no prior.png: the generated images hold infinite values" in capsys.readouterr().out
    with torch.no_grad():
        with pytest.raises(UserError, match="reconstructions hold infinite values"):
            stage_one._decoded(vae, torch.zeros(1, 2, 8, 8))
        assert stage_one._decoded(vae, torch.full((1, 2, 8, 8), torch.nan)).isnan().any()  # the verdict says it
