"""Both stages end to end, tiny: what a run leaves, that it can be broken off, and what its numbers depend on."""

import csv
import json
import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import ldm
from ldm import artifact
from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.data.sources.digits import Digits
from ldm.training import ldm_run
from ldm.training.averages import ema
from ldm.training.optimization import learning_rate as schedule
from ldm.training.optimization.learning_rate import LearningRate
from ldm.training.runs.folder import RunFolder
from ldm.training.runs.resume import Start, is_more, rescheduled
from ldm.training.task import Task


class Killed(Exception):
    pass


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def model_files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "model").iterdir()}


def newest(run: Path) -> dict:
    return torch.load(sorted((run / "checkpoints").glob("*.ckpt"))[-1], weights_only=True)


def assert_same(a, b, where: str = "") -> None:
    """Plain data and tensors, equal to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


# What a run leaves ---------------------------------------------------------------------------------------------------


def test_stage_one_leaves_a_whole_run(runs):
    run = runs / "vae" / "digits"
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.csv", "samples", "checkpoints", "model", "DONE"} <= names
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["prior.png", "step-00000008.png"]
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == {"class": "Digits", "size": 8}
    last = rows(run)[-1]
    assert {"val/loss", "val/psnr", "val/kl_channel_0", "val/kl_channel_1"} <= set(last)
    vae = ldm.load(run)
    assert float(last["val/psnr"]) == pytest.approx(mean_psnr(vae, runs / "cache" / "data", 32), abs=1e-3)
    assert "PSNR of the reconstruction, the mean of 32 images" in (runs / "said.txt").read_text()
    assert vae.factor == 2 and vae.preprocess.shape == (1, 8, 8)


@torch.no_grad()
def mean_psnr(vae, cache: Path, n: int) -> float:
    """The mean of the PSNRs of the first `n` validation images in validation's order."""
    _, val = Digits(8).tables(cache)
    images = val.batch(permutation(0, 0, len(val))[:n], ["image"])["image"]
    errors = (vae.decode(vae.encode(images).mode()) - images).square().mean((1, 2, 3))
    return (10 * torch.log10(4 / errors)).mean().item()


def test_figures_do_not_depend_on_the_batch_size(runs, train):
    """A validation over 50 images, however they are batched; and a step's loss over all that it is made of."""
    words = ["trainer.max_steps=2", "loader.val_samples=50", "trainer.limit_val_batches=1.0", "optimizer.lr=0"]
    found = []
    for name, *batched in (
        ("whole", "batch_size=24", "trainer.val_check_interval=2"),
        ("parts", "batch_size=8", "trainer.accumulate_grad_batches=3", "trainer.val_check_interval=6"),
    ):
        run = train("vae", runs, f"name=figures-{name}", *words, *batched)
        found.append([{k: float(v) for k, v in row.items() if v and k != "step"} for row in rows(run)])
    assert {"train/psnr", "train/grad_norm"} <= found[0][0].keys()
    assert {"val/psnr", "val/loss", "val/kl_channel_1"} <= found[0][-1].keys()
    for one, two in zip(*found, strict=True):
        assert one == {name: pytest.approx(value, rel=2e-5) for name, value in two.items()}


def test_stage_one_says_what_it_is_worth(runs):
    printed = (runs / "said.txt").read_text()
    for words in ("kl_weight of", "dB PSNR", "KL of each latent channel", "parameters"):
        assert words in printed


def test_stage_two_is_whole_with_its_first_stage_inside(runs):
    run = runs / "ldm" / "digits"
    model, vae = ldm.load(run), ldm.load(runs / "vae" / "digits")
    assert model(labels=[3, "7"], n=2, output="pt").shape == (4, 1, 8, 8)
    assert_same(dict(model.first_stage.state_dict()), dict(vae.state_dict()))
    table = rows(run)
    assert [int(r["step"]) for r in table if r["train/loss"]] == list(range(6))
    assert [int(r["step"]) for r in table if r["val/loss"]] == [3, 6]
    assert (run / "samples" / "step-00000006.png").exists() and (run / "DONE").exists()


@pytest.mark.parametrize(
    ("condition", "requested"),
    [("text", {"prompt": ["the digit three", "海"]}), ("none", {"n": 2})],
)
def test_other_conditions_end_to_end(runs, train, condition, requested):
    words = ["network.attention=[false,true]", "trainer.max_steps=2"]
    model = ldm.load(train("ldm", runs, f"name={condition}", f"conditioner={condition}", *words))
    images = model(**requested, output="pt")
    assert images.shape == (2, 1, 8, 8) and images.isfinite().all()
    assert model.conditioner.needs == {"text": ("text",), "none": ()}[condition]


def test_run_model_folder_and_checkpoint_hold_the_same_model(runs):
    run = runs / "ldm" / "digits"
    kept = sorted((run / "checkpoints").glob("*.ckpt"))
    assert [p.name for p in kept] == ["step-00000004.ckpt", "step-00000006.ckpt"]
    models = [ldm.load(path) for path in (run, run / "model", kept[-1])]
    for other in models[1:]:
        assert artifact.model_hash(other) == artifact.model_hash(models[0])
        assert torch.equal(other(labels=[3], output="pt"), models[0](labels=[3], output="pt"))
    assert artifact.model_hash(ldm.load(kept[0])) != artifact.model_hash(models[0])
    vae = runs / "vae" / "digits"
    of_checkpoint = ldm.load(sorted((vae / "checkpoints").glob("*.ckpt"))[-1])
    assert artifact.model_hash(of_checkpoint) == artifact.model_hash(ldm.load(vae))


def test_the_saved_model_has_the_average_weights(runs):
    run = runs / "ldm" / "digits"
    state, saved = newest(run)["state_dict"], ldm.load(run).state_dict()
    key = "network.conv_out.weight"
    assert torch.equal(saved[f"denoiser.{key}"], state[f"average.denoiser.{key}"])
    assert not torch.equal(saved[f"denoiser.{key}"], state[f"trained.denoiser.{key}"])


def test_the_learning_rate_is_the_schedules_at_each_step(runs):
    rate = schedule.LearningRate(0.01, 3, "cosine", 0.0, 6)
    run = runs / "ldm" / "digits"
    assert [float(r["train/lr"]) for r in rows(run) if r["train/lr"]] == pytest.approx([rate(i) for i in range(6)])
    assert newest(run)["optimizer_states"][0]["param_groups"][0]["lr"] == rate(5)


def test_equal_runs_give_equal_files_whatever_the_global_generators_hold(runs, train):
    torch.manual_seed(123)
    np.random.seed(5)
    words = ["trainer.max_steps=6", "checkpoint.every_n_steps=2", "optimizer.lr=0.01"]
    again = train("ldm", runs, "name=again", *words)
    assert model_files(again) == model_files(runs / "ldm" / "digits")
    assert rows(again) == rows(runs / "ldm" / "digits")


# Broken off and resumed ----------------------------------------------------------------------------------------------


def interrupt(monkeypatch, batches: int) -> None:
    """Kills the run in the midst of its batch of this number, from 1 on."""
    step, seen = Task.training_step, []

    def killed(self, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == batches:
            raise Killed
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", killed)


@pytest.mark.parametrize(("stage", "accumulate"), [("vae", 1), ("ldm", 2)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(runs, train, monkeypatch, stage, accumulate):
    words = [
        "trainer.max_steps=5",
        "checkpoint.every_n_steps=2",
        "trainer.val_check_interval=3",
        f"trainer.accumulate_grad_batches={accumulate}",
        *(["network.dropout=0.2"] if stage == "ldm" else []),
    ]
    whole = train(stage, runs, "name=whole", *words)
    name = "name=broken"
    # Past the first checkpoint; then, resumed there, after one batch more; then past the second checkpoint.
    for resume, batches in (("false", 4 * accumulate), ("true", 2), ("true", 2 * accumulate + 1)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            interrupt(patch, batches)
            train(stage, runs, name, f"resume={resume}", *words)
    broken = train(stage, runs, name, "resume=true", *words)

    assert model_files(broken) == model_files(whole)
    for part in ("state_dict", "optimizer_states", "global_step", "ldm_weights", "BatchModule"):
        assert_same(newest(broken)[part], newest(whole)[part], part)
    assert rows(broken) == rows(whole)


def test_a_finished_run_is_not_trained_again(runs, train, monkeypatch, capsys):
    interrupt(monkeypatch, 1)
    before = model_files(runs / "vae" / "digits")
    train("vae", runs, "trainer.max_steps=8", "resume=true")
    assert "finished: nothing to do" in capsys.readouterr().out
    assert model_files(runs / "vae" / "digits") == before


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_a_finished_run_trains_on_to_more_steps_as_if_it_had_had_them(stage, runs, train, tmp_path, capsys):
    first = [f"first_stage={runs / 'vae' / 'digits'}", f"cache_dir={runs / 'cache'}"] if stage == "ldm" else []
    words = [*first, "optimizer.schedule=constant"]
    whole = train(stage, tmp_path, "name=whole", "trainer.max_steps=5", *words)
    run = train(stage, tmp_path, "name=part", "trainer.max_steps=3", *words)
    capsys.readouterr()
    train(stage, tmp_path, "name=part", "trainer.max_steps=5", "resume=true", *words)
    printed = capsys.readouterr().out
    assert "trains on from step 3 to step 5; the learning rate was" in printed and "nothing to do" not in printed
    assert model_files(run) == model_files(whole) and (run / "DONE").exists()
    for steps in (5, 4):
        train(stage, tmp_path, "name=part", f"trainer.max_steps={steps}", "resume=true", *words)
        assert "is finished: nothing to do" in capsys.readouterr().out


def test_a_run_that_trains_on_has_the_schedule_of_its_new_length(train, tmp_path, capsys):
    words = ["optimizer.lr=0.1", "optimizer.warmup_steps=0", "name=part"]
    run = train("vae", tmp_path, "trainer.max_steps=2", *words)
    train("vae", tmp_path, "trainer.max_steps=4", "resume=true", *words)
    assert "whose cosine now ends there, was 0.05 and is 0.05" in capsys.readouterr().out
    rates = [row["train/lr"] for row in rows(run) if row["train/lr"]]
    assert [float(rate) for rate in rates] == pytest.approx([0.1, 0.05, 0.05, 0.1 * (1 - math.sqrt(0.5)) / 2])
    for file in run.glob("checkpoints/*"):
        file.unlink()
    with pytest.raises(UserError, match="no checkpoint left to continue from"):
        train("vae", tmp_path, "trainer.max_steps=5", "resume=true", *words)
    assert (run / "DONE").exists()


def test_a_finished_run_trains_on_for_more_time(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "MEASURED_STEPS", 2)
    monkeypatch.setattr(schedule, "FEWEST", 1)
    words = ["trainer.max_steps=-1", "name=timed"]
    run = train("vae", tmp_path, "trainer.max_time=00:00:00:01", *words)
    steps = newest(run)["global_step"]
    used = newest(run)["callbacks"]["TimeBudget"]["used"]
    train("vae", tmp_path, "trainer.max_time=00:00:00:01", "resume=true", *words)
    assert "is finished: nothing to do" in capsys.readouterr().out
    train("vae", tmp_path, "trainer.max_time=00:00:00:02", "resume=true", *words)
    assert f"trains on from step {steps} for the {max(0, 2 - used):.0f} s that are left" in capsys.readouterr().out
    assert newest(run)["global_step"] > steps and newest(run)["callbacks"]["TimeBudget"]["used"] > used


def test_time_counts_from_the_beginning_of_a_run_that_steps_had_ended(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "MEASURED_STEPS", 2)
    monkeypatch.setattr(schedule, "FEWEST", 1)
    clock(monkeypatch, 1.0)
    run = train("vae", tmp_path, "trainer.max_steps=3", "name=both")
    used = newest(run)["callbacks"]["TimeBudget"]["used"]
    assert used >= 1
    less, more = (f"trainer.max_time=00:00:00:{seconds:02d}" for seconds in (int(used), int(used) + 20))
    train("vae", tmp_path, "trainer.max_steps=-1", less, "name=both", "resume=true")
    assert "is finished: nothing to do" in capsys.readouterr().out
    train("vae", tmp_path, "trainer.max_steps=5", more, "name=both", "resume=true")
    printed = capsys.readouterr().out
    left = int(used) + 20 - used
    assert f"trains on from step 3 for the {left:.0f} s that are left of trainer.max_time, or to step 5;" in printed
    assert newest(run)["global_step"] == newest(run)["ldm_total_steps"] == 5
    again = {"max_steps": 5, "max_time": more.partition("=")[2]}
    assert not is_more(RunFolder(run), {"trainer": again})
    assert is_more(RunFolder(run), {"trainer": again | {"max_steps": 7}}), "steps had ended it, and there is time left"
    assert not is_more(RunFolder(run), {"trainer": {"max_steps": 7, "max_time": "00:00:00:01"}})


def test_a_run_that_notes_no_time_is_trained_on_with_a_word():
    start = Start(Path("step.ckpt"), 10, total=10, rate=0.1, used=None)
    config = {"trainer": {"max_steps": -1, "max_time": "00:00:00:30"}}
    printed = rescheduled(start, config, LearningRate(0.1, 0))
    assert "for the 30 s of trainer.max_time (its checkpoint doesn't record the time used before)" in printed


def test_a_run_whose_steps_did_not_count_beside_its_time_continues_as_it_was():
    start = Start(Path("step.ckpt"), 10, total=90, rate=0.1, limit=30.0, used=5.0, ignored=5000)
    for steps, changes in ((-1, False), (5000, False), (60, True)):
        config = {"trainer": {"max_steps": steps, "max_time": "00:00:00:30"}}
        assert (rescheduled(start, config, LearningRate(0.1, 0)) is not None) == changes


# The average ---------------------------------------------------------------------------------------------------------


def test_the_average_moves_once_an_optimizer_step(runs, train, monkeypatch):
    seen = []
    update = ema.update

    def watched(average, module, decay):
        before = [p.clone() for p in average.parameters()]
        update(average, module, decay)
        seen.append(decay)
        for old, new, trained in zip(before, average.parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(new, decay * old + (1 - decay) * trained, atol=1e-6, rtol=1e-5)

    monkeypatch.setattr(ema, "update", watched)
    train("ldm", runs, "name=ema", "trainer.max_steps=4", "trainer.accumulate_grad_batches=3", "ema.decay=0.3")
    assert seen == [2 / 11, 3 / 12, 0.3, 0.3]


# Limited by time -----------------------------------------------------------------------------------------------------


def clock(monkeypatch, seconds_a_look: float) -> None:
    """Time passes by so much whenever the run looks at its clock, which it does once a step while it measures."""
    now = [0.0]

    def look() -> float:
        now[0] += seconds_a_look
        return now[0]

    for module in ("ldm.training.optimization.learning_rate.time", "ldm.training.prepared.time"):
        monkeypatch.setattr(module, types.SimpleNamespace(monotonic=look))


def test_a_time_budget_fixes_the_number_of_steps_once(runs, train, monkeypatch):
    monkeypatch.setattr(schedule, "MEASURED_STEPS", 5)
    words = ["name=timed", "trainer.max_time=00:00:00:25", "checkpoint.every_n_steps=6", "optimizer.schedule=linear"]
    clock(monkeypatch, 1.0)  # 25 s at 1 s a step, less the reserve and what passed before the first step
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 16)
        train("ldm", runs, *words)
    run = runs / "ldm" / "timed"
    total = newest(run)["ldm_total_steps"]
    assert 18 <= total <= 23
    clock(monkeypatch, 100.0)  # a resumed run is the run: it isn't measured again
    train("ldm", runs, *words, "resume=true")
    last = newest(run)
    assert last["global_step"] == last["ldm_total_steps"] == total
    rates = {int(r["step"]): float(r["train/lr"]) for r in rows(run) if r["train/lr"]}
    assert sorted(rates) == list(range(total))
    falls = [rates[step] - rates[step + 1] for step in range(11, total - 1)]  # from where the number was first known
    assert falls == pytest.approx([rates[total - 1]] * len(falls), rel=1e-3)  # the schedule ends with the run


def test_a_time_budget_that_is_too_short_for_measuring_still_ends(runs, train, monkeypatch):
    clock(monkeypatch, 10.0)
    run = train("ldm", runs, "name=short", "trainer.max_time=00:00:01:00")
    assert newest(run)["global_step"] <= 10


# What the numbers depend on ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(runs, config):
    """A diffusion task of the digits, and a batch of 12 as it trains on them."""
    from ldm.common.registry import build
    from ldm.data.datamodule import TrainBatches
    from ldm.training.ldm_task import DiffusionTask
    from ldm.training.prepared import task_options

    made = config("train_ldm", runs, "trainer.max_steps=4")
    tables = build(made["data"]).tables(Path(made["cache_dir"]) / "data")
    vae = ldm.load(runs / "vae" / "digits")
    torch.manual_seed(0)
    conditioner = ldm_run.build_conditioner(made["conditioner"], "label", tables[0], vae)
    denoiser = ldm_run.build_denoiser(made, vae, conditioner)
    for parameter in denoiser.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    train, _, whitening = ldm_run.latents(tables, vae, made)
    task = DiffusionTask(
        vae, denoiser, conditioner, tables[0].preprocess, whitening, {"steps": 2}, **task_options(made)
    )
    batches = TrainBatches(train, ["label"], 0)
    return task, lambda *positions: batches[np.array(positions)]


@pytest.mark.parametrize("network", ["trained", "average"])
def test_losses_depend_on_seed_and_position_alone(task, network):
    task, batch = task
    with torch.no_grad():
        losses = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            losses.append(task.losses(batch(*range(12)), getattr(task, network))[0])
        assert torch.equal(*losses)
        halves = [task.losses(batch(*rows), getattr(task, network))[0] for rows in (range(6), range(6, 12))]
        torch.testing.assert_close(torch.stack(halves).mean(), losses[0])  # as two ranks would see it


@torch.no_grad()
def test_validation_is_of_the_average_undropped_and_the_same_every_time(task, monkeypatch):
    task, batch = task
    seen, forward = [], type(task.average["conditioner"]).forward
    monkeypatch.setattr(
        type(task.average["conditioner"]), "forward", lambda s, b, d=None: (seen.append((s, d)), forward(s, b, d))[1]
    )
    task.losses(batch(*range(8)), task.average)
    task.losses(batch(*range(8)), task.trained)
    (validated, nothing), (trained, dropped) = seen
    assert validated is task.average["conditioner"] and nothing is None
    assert trained is task.trained["conditioner"] and dropped["label"].shape == (8,)


@torch.no_grad()
def test_every_visit_draws_its_latent_again_from_the_whitened_posterior(task):
    from ldm.common.randomness import normal

    task, batch = task
    first = batch(0, 1)
    again = first | {"position": torch.tensor([0, 5000])}  # the same images, the second at another visit
    one, other = (task.latents(b, 0) for b in (first, again))
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    draw = first["latent_mean"] + first["latent_std"] * normal(0, "posterior", torch.tensor([0, 1]), (2, 4, 4))
    wanted = (draw - task.latent_mean[:, None, None]) / task.latent_std[:, None, None]
    torch.testing.assert_close(one, wanted)


# Where the latents come from -----------------------------------------------------------------------------------------


def test_latents_are_encoded_once_and_training_never_calls_the_first_stage(runs, train, monkeypatch):
    monkeypatch.setattr(ldm.AutoencoderKL, "encode", None)
    model = ldm.load(train("ldm", runs, "name=cached", "trainer.max_steps=1"))
    cache = [json.loads(p.read_text()) for p in (runs / "cache" / "latents").glob("*/latents.json")]
    assert sorted(c["n"] for c in cache) == [359, 1438]  # validation and training
    statistics = max(cache, key=lambda c: c["n"])
    assert model.latent_mean.tolist() == pytest.approx(statistics["channel_mean"])
    assert model.latent_std.tolist() == pytest.approx(statistics["channel_std"])


def test_latents_online_encode_every_batch(runs, train, monkeypatch):
    counts, encode = [], ldm.AutoencoderKL.encode
    monkeypatch.setattr(ldm.AutoencoderKL, "encode", lambda s, x: (counts.append(len(x)), encode(s, x))[1])
    words = ["latents=online", "trainer.max_steps=6", "optimizer.lr=0.01"]
    online = train("ldm", runs, "name=online", *words)
    assert len(counts) >= 6 and set(counts[:3]) == {16}
    losses = [
        [float(r["train/loss"]) for r in rows(run) if r["train/loss"]] for run in (online, online.parent / "digits")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # the same draws of the same posteriors


def test_ddpm_on_pixels_without_a_first_stage(tmp_path, train):
    run = train(
        "ldm",
        tmp_path,
        "first_stage=identity",
        "diffusion=ddpm",
        "diffusion.parameterization.schedule.timesteps=60",
        "diffusion.sampling.steps=60",
        "trainer.max_steps=2",
    )
    model = ldm.load(run)
    assert type(model.first_stage).__name__ == "Identity"
    assert not model.latent_mean.any() and (model.latent_std == 1).all()
    assert model.sampling["sampler"] == "ddpm" and model.sampling["steps"] == 60
    assert (run / "samples" / "step-00000002.png").exists()
    assert not (tmp_path / "cache" / "latents").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["first_stage=digitz"], "no run 'digitz' of train_vae.py. Did you mean 'digits'"),
        (["data=torchvision"], "no run 'mnist' of train_vae.py.*first_stage="),
        (["data.size=9", "first_stage=digits"], "9x9 isn't divisible"),
    ],
    ids=["unknown", "of other data", "of a wrong size"],
)
def test_a_first_stage_that_does_not_fit_is_refused_before_training(runs, train, monkeypatch, words, message):
    interrupt(monkeypatch, 1)
    with pytest.raises(UserError, match=message):
        train("ldm", runs, "name=refused", *words, "trainer.max_steps=1", "overwrite=true")


def test_a_first_stage_of_another_size_is_used_only_if_named(runs, train, monkeypatch):
    interrupt(monkeypatch, 1)
    with pytest.raises(UserError, match="first_stage="):
        train("ldm", runs, "name=unasked", "data.size=16", "trainer.max_steps=1")


def test_a_first_stage_of_another_size_may_be_named(runs, train):
    run = train("ldm", runs, "name=larger", "data.size=16", "first_stage=digits", "trainer.max_steps=1")
    assert ldm.load(run)(labels=[1], output="pt").shape == (1, 1, 16, 16)


def test_a_vae_that_does_not_compress_or_fit_is_refused(tmp_path, train):
    for words, message in (
        (["data.size=9"], "9x9 isn't divisible"),
        (["vae.latent_channels=4"], "don't compress"),
    ):
        with pytest.raises(UserError, match=message):
            train("vae", tmp_path, "trainer.max_steps=1", "overwrite=true", *words)
