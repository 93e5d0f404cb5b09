"""The best model of a run: what is kept, when patience ends the run, and what a resumed run knows."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.training.runs import best
from ldm.training.runs.folder import RunFolder
from ldm.training.trainer.own_callbacks import build_callbacks

# A figure that is best, 0, at step `at` and gets worse from there on.
MODULE = """
import lightning.pytorch as pl
import ldm

@ldm.register
class Worsening(pl.Callback):
    def __init__(self, at: int):
        self.at = at

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/made", float(abs(trainer.global_step - self.at)))

class Silent(pl.Callback):
    pass
"""
WORDS = [
    "trainer.val_check_interval=2",
    "optimizer.schedule=constant",
    "checkpoint.every_n_steps=3",
    "checkpoint.keep_last=1",
    "checkpoint.best=val/made",
    "checkpoint.patience=2",
    "modules=[worsening]",
    "callbacks=[{class: Worsening, at: 4}]",
]


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "worsening.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def steps(run: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / "checkpoints").glob("*.ckpt"))


def weights(path: Path) -> list[torch.Tensor]:
    return list(ldm.load(path, precision="float32").state_dict().values())


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_best_is_kept_beside_the_last_and_patience_stops_also_when_resumed(tmp_path, train, module, capsys):
    run = train("vae", tmp_path, *WORDS, "name=whole", "trainer.max_steps=40")
    assert steps(run) == [4, 8]  # better at 2 and 4, worse at 6 and 8
    said = capsys.readouterr().out
    assert "val/made hasn't improved since step 4 (checkpoint.patience=2): the run ends at step 8" in said
    assert "model/ holds the best: step 4, val/made 0; the last, step 8, has 4" in said
    model = weights(run)
    assert equal(model, weights(run / "checkpoints" / "step-00000004.ckpt"))
    assert not equal(model, weights(run / "checkpoints" / "step-00000008.ckpt"))

    train("vae", tmp_path, *WORDS, "name=whole", "trainer.max_steps=40", "resume=true")
    said = capsys.readouterr().out
    assert "ended by checkpoint.patience=2" in said and "is finished: nothing to do" in said

    parts = train("vae", tmp_path, *WORDS, "name=parts", "trainer.max_steps=6")
    assert steps(parts) == [4, 6]
    train("vae", tmp_path, *WORDS, "name=parts", "trainer.max_steps=40", "resume=true")
    assert steps(parts) == [4, 8]
    assert equal(model, weights(parts))
    assert json.loads((parts / best.FILE).read_text()) == json.loads((run / best.FILE).read_text())


@pytest.mark.slow
def test_resuming_before_the_best_step_finds_it_again(tmp_path, train, module):
    run = train("vae", tmp_path, *WORDS, "trainer.max_steps=3")
    record = json.loads((run / best.FILE).read_text())
    record["values"]["4"] = -1.0  # of a part of the run that is lost
    (run / best.FILE).write_text(json.dumps(record))
    train("vae", tmp_path, *WORDS, "trainer.max_steps=40", "resume=true")
    assert json.loads((run / best.FILE).read_text())["values"]["4"] == 0
    assert equal(weights(run), weights(run / "checkpoints" / "step-00000004.ckpt"))


@pytest.mark.slow
def test_distance_of_a_resumed_run_is_that_of_the_whole_one(tmp_path, train):
    words = ["first_stage=identity", "distance.n=8", "distance.steps=1", "distance.features=random"]
    words += ["trainer.val_check_interval=2", "optimizer.schedule=constant", "checkpoint.best=val/fd"]
    whole = train("ldm", tmp_path, *words, "name=whole", "trainer.max_steps=4")
    train("ldm", tmp_path, *words, "name=parts", "trainer.max_steps=2")
    parts = train("ldm", tmp_path, *words, "name=parts", "trainer.max_steps=4", "resume=true")
    assert (whole / best.FILE).read_text() == (parts / best.FILE).read_text()
    assert equal(weights(whole), weights(parts))


def test_last_step_may_be_the_best(tmp_path, train, module):
    run = train("vae", tmp_path, *WORDS, "trainer.max_steps=3")  # validated at 2, and at 3 when it is done
    assert json.loads((run / best.FILE).read_text())["best"] == 3
    assert equal(weights(run), weights(run / "checkpoints" / "step-00000003.ckpt"))


def test_order_of_values_follows_the_mode():
    values = {2: 3.0, 4: 1.0, 6: 1.0, 8: math.nan, 10: math.inf}
    assert best.best_step(values, "min") == 4  # the first of equals
    assert best.best_step(values, "max") == 2
    assert best.best_step({2: math.nan}, "min") is None
    assert [best.mode_of(name) for name in ("val/psnr", "val/fd", "val/loss")] == ["max", "min", "min"]
    assert (
        best.is_over(values, "min", 3) and not best.is_over(values, "min", 4) and not best.is_over(values, "min", None)
    )


def test_values_of_another_figure_are_not_read(tmp_path):
    run = best.Best(RunFolder(tmp_path), "val/fd")
    run.values = {2: 1.0}
    run._save()
    assert best.values_in(tmp_path / best.FILE, "val/fd", "min") == {2: 1.0}
    assert best.values_in(tmp_path / best.FILE, "val/loss", "min") == {}
    (tmp_path / best.FILE).write_text("{")
    assert best.values_in(tmp_path / best.FILE, "val/fd", "min") == {}


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("ldm", ["checkpoint.best=val/fdd"], "Did you mean 'val/fd'"),
        ("vae", ["checkpoint.best=val/fd"], "isn't logged"),
        ("vae", ["checkpoint.patience=3"], "need checkpoint.best"),
        ("vae", ["checkpoint.best=val/psnr", "trainer.limit_val_batches=0"], "needs validation"),
        ("vae", ["checkpoint.best=val/psnr", "trainer.accumulate_grad_batches=3"], "take a multiple of 3"),
        ("ldm", ["checkpoint.best=val/fd", "distance.n=0"], "distance.n=0 makes none"),
        ("ldm", ["distance.n=4"], "at least 8 of each"),
    ],
)
def test_what_cant_be_chosen_is_refused_before_training(tmp_path, train, stage, words, message):
    with pytest.raises(UserError, match=message):
        train(stage, tmp_path, *words, *(["first_stage=identity"] if stage == "ldm" else []))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_figure_that_no_callback_logs_is_named(tmp_path, train, module):
    words = [word for word in WORDS if not word.startswith("checkpoint.best")]
    with pytest.raises(UserError, match="checkpoint.best=val/mad isn't logged. Did you mean 'val/made'"):
        train("vae", tmp_path, *words, "checkpoint.best=val/mad", "trainer.max_steps=4")


def test_callbacks_are_registered_or_in_the_modules(module):
    import worsening  # noqa: F401  (registers)

    def made(*specs):
        return build_callbacks({"callbacks": list(specs), "modules": ["worsening"]})

    first, second = made({"class": "Worsening", "at": 3}, "worsening.Silent")
    assert first.at == 3 and type(second).__name__ == "Silent"
    for spec, message in [
        ("Worsenin", "no class is registered as 'Worsenin'"),
        ("os.path", r"give modules=\[os\]"),
        ("worsening.Silen", "Did you mean 'Silent'"),
        ("worsening.ldm", "isn't a lightning.pytorch.Callback"),
        ("UNet", "isn't a lightning.pytorch.Callback"),
        ({"class": "Worsening", "att": 3}, "Did you mean 'at'"),
        ({"class": "Worsening"}, "missing a required argument: 'at'"),
        ({"at": 3}, "names no class"),
    ]:
        with pytest.raises(UserError, match=message):
            made(spec)


def test_stopping_waits_for_fit():
    """The validation after training only records: there is nothing left to stop."""
    run = best.Best(RunFolder(Path("unused")), "val/loss", patience=1)
    run._save = lambda: None
    trainer = SimpleNamespace(global_step=1, callback_metrics={"val/loss": torch.tensor(1.0)}, is_global_zero=True)
    trainer.state, trainer.should_stop = SimpleNamespace(fn="validate"), False
    trainer.strategy = SimpleNamespace(broadcast=lambda value: value)
    run.on_validation_end(trainer, None)
    trainer.global_step, trainer.callback_metrics = 2, {"val/loss": torch.tensor(2.0)}
    run.on_validation_end(trainer, None)
    assert run.values == {1: 1.0, 2: 2.0} and not trainer.should_stop
