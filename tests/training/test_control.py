"""finetune=controlnet: starts as the base, trains the ControlNet alone, resumes exactly, and loads with its base."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ldm
from ldm.commands import sample as sampling
from ldm.common.errors import UserError
from ldm.model.loading import load
from ldm.networks import Controlled
from tests.commands.test_sampling import config as sample_config

WORDS = ("finetune=controlnet", "base=digits", "control=canny", "trainer.max_steps=4", "checkpoint.every_n_steps=2")
WORDS += ("samples.every_n_steps=4", "optimizer.warmup_steps=1", "optimizer.lr=0.01")


@pytest.fixture(scope="module")
def tuned(runs, train):
    """The base's file before training, and the run."""
    before = load_file(runs / "ldm" / "digits" / "model" / "model.safetensors")
    return before, train("ldm", runs, *WORDS, "name=digits-canny")


def test_the_base_stays_and_only_the_controlnet_is_saved(runs, tuned):
    before, run = tuned
    after = load_file(runs / "ldm" / "digits" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    names = set(load_file(run / "model" / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"network"}
    base, model = load(runs / "ldm" / "digits"), load(run)
    assert isinstance(model.denoiser.network, Controlled)
    state = model.denoiser.network.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.denoiser.network.state_dict().items())
    generated = [m(labels=[3], output="pt") for m in (base, model)]
    assert torch.equal(*generated)  # without a control image
    steered = model(labels=[3], control_from=np.full((8, 8), 9, np.uint8), output="pt")
    assert steered.isfinite().all()
    net = model.denoiser.network.controlnets[0]
    assert all(out.weight.any() for out in (*net.controlnet_down_blocks, net.controlnet_mid_block))


def test_the_first_samples_are_the_bases(runs, tuned, config):
    _, run = tuned
    assert [p.name for p in sorted((run / "samples").iterdir())] == ["step-00000000.png", "step-00000004.png"]


def test_a_resumed_run_is_the_run(runs, tuned, train):
    _, whole = tuned
    run = runs / "ldm" / "resumed"
    shutil.copytree(whole, run)
    for file in (run / "DONE", *run.glob("checkpoints/step-00000004*"), *run.glob("model/*")):
        file.unlink()
    train("ldm", runs, *WORDS, "name=resumed", "resume=true")
    for name in ("config.json", "model.safetensors"):
        assert (run / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_from_the_command_line(runs, tuned, tmp_path, capsys):
    _, run = tuned
    from PIL import Image

    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "edges.png")
    out = {name: str(tmp_path / f"{name}.png") for name in ("own", "named")}
    shared = {"labels": [3], "control_image": str(tmp_path / "edges.png"), "single": False, "n": 1}
    sampling.main(sample_config(runs, run="digits-canny", out=out["own"], **shared))
    sampling.main(sample_config(runs, run="digits", control="digits-canny", out=out["named"], **shared))
    own, named = (np.asarray(Image.open(file)) for file in out.values())
    assert np.array_equal(own, named)
    with pytest.raises(UserError, match="needs a control image"):
        sampling.main(sample_config(runs, run="digits", control="digits-canny", labels=[3]))
    sampling.main(sample_config(runs, run="digits-canny", out=out["own"], **shared | {"control_image": None}))
    assert (
        "without control_image= or control_from=, these are images of the base alone, without digits-canny"
    ) in capsys.readouterr().out


def test_the_name_is_that_of_base_and_control(runs, train):
    train("ldm", runs, *WORDS[:2], "control=grey", "trainer.max_steps=1", "samples.every_n_steps=9")
    assert (runs / "ldm" / "digits-grey" / "model" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("control", "message"), [("map", "'map', which the data don't have"), ("edges", "neither a kind of control image")]
)
def test_what_the_data_cant_give_is_refused_before_work(runs, train, control, message):
    with pytest.raises(UserError, match=message):
        train("ldm", runs, "finetune=controlnet", "base=digits", f"control={control}", f"name=x-{control}")
    assert not (runs / "ldm" / f"x-{control}" / "config.yaml").exists()


def test_half_of_the_prompts_are_dropped_and_pixels_come_only_if_needed(runs):
    from ldm.data.sources.digits import Digits
    from ldm.training.finetune.controlnet import ControlFinetune

    model = load(runs / "ldm" / "digits")
    kind = ControlFinetune("canny")
    kind.check(model, Digits(size=8).tables(runs / "cache" / "data"))
    assert kind.needs == ("image",)
    kind.prepare(model)
    assert [part.drop_prob for part in model.conditioner.parts.values()] == [0.5]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("denoiser.network.controlnets.0.") for name in trained)
    assert isinstance(ldm.load(runs / "ldm" / "digits").denoiser.network, ldm.UNet)
