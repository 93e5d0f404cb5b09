"""Means over samples, and the loss by four bands of noise level."""

import csv
import math
from pathlib import Path

import pytest
import torch

from ldm.training.ldm_task import noise_quantiles
from ldm.training.trainer.means import Means, by_quarter


def test_each_band_has_the_mean_of_its_own_samples_over_all_batches():
    means = Means()
    means.add_splits({"loss_q": by_quarter(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.01, 0.24, 0.99]))})
    means.add_splits({"loss_q": by_quarter(torch.tensor([6.0, 5.0]), torch.tensor([0.2, 0.5]))})
    assert means.taken() == ({"loss_q1": 3.0, "loss_q3": 5.0, "loss_q4": 3.0}, 0)
    assert means.taken() == ({}, 0)


def test_what_is_not_finite_stays_in_its_band():
    means = Means()
    means.add_splits({"loss_q": by_quarter(torch.tensor([math.inf, math.nan, 2.0]), torch.tensor([0.1, 0.3, 0.6]))})
    found, _ = means.taken()
    assert found["loss_q1"] == math.inf and math.isnan(found["loss_q2"]) and found["loss_q3"] == 2


def test_the_bands_of_processes_are_put_together(monkeypatch):
    from ldm.training.trainer import means as figures

    other = Means()
    other.add_splits({"loss_q": by_quarter(torch.tensor([9.0, 1.0, 1.0]), torch.tensor([0.9, 0.8, 0.1]))})
    theirs = {"loss_q4": (10.0, 2.0), "loss_q1": (1.0, 1.0)}
    own = Means()
    own.add_splits({"loss_q": by_quarter(torch.tensor([2.0]), torch.tensor([0.8]))})
    pending = other.pending()
    monkeypatch.setattr(figures, "gathered", lambda mine: [mine, pending])
    assert own.pending() == {"loss_q": [[1, 0, 0, 12], [1, 0, 0, 3]]}
    monkeypatch.setattr(figures, "gathered", lambda mine: [mine, (theirs, 0)])
    assert own.taken()[0] == {"loss_q4": 4.0, "loss_q1": 1.0}


def test_a_checkpoint_keeps_what_is_not_logged_yet():
    own, again = Means(), Means()
    values, u = torch.rand(7), torch.rand(7)
    own.add_splits({"loss_q": by_quarter(values, u)})
    again.restore(own.pending())
    for means in (own, again):
        means.add_splits({"loss_q": by_quarter(values[:2], u[:2])})
    assert own.taken() == again.taken()


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_bands_are_the_quarters_of_the_training_noise(runs):
    """Together they are the loss, each as often as the step's samples fall into it."""
    for row in (row for row in rows(runs / "ldm" / "digits") if row["train/loss"]):
        position = 16 * int(row["step"]) + torch.arange(16)
        counts = (4 * noise_quantiles(0, position)).floor().long().bincount(minlength=4).tolist()
        assert min(counts) >= 3
        total = sum(count * float(row[f"train/loss_q{i}"]) for i, count in enumerate(counts, 1))
        assert total / 16 == pytest.approx(float(row["train/loss"]), rel=1e-5)
    assert any(row["val/loss_q4"] for row in rows(runs / "ldm" / "digits"))


def test_steps_between_two_logs_count_and_a_resumed_run_logs_the_same(runs, train):
    words = [
        "batch_size=2",
        "trainer.log_every_n_steps=4",
        "optimizer.schedule=constant",
        "trainer.val_check_interval=8",
    ]
    whole = train("ldm", runs, "name=whole-bands", "trainer.max_steps=4", *words)
    train("ldm", runs, "name=cut-bands", "trainer.max_steps=2", *words)
    cut = train("ldm", runs, "name=cut-bands", "trainer.max_steps=4", *words, "resume=true")
    last = [row for row in rows(whole) if row["train/loss"]]
    assert len(last) == 1 and all(last[0][f"train/loss_q{i}"] for i in (1, 2, 3, 4))  # 8 samples, 2 of them in a step
    assert last == [{name: row[name] for name in last[0]} for row in rows(cut) if row["train/loss"]]
