"""`ldm merge`: sums and differences of models, by block, of one with LoRAs; what can't be merged is refused."""

import copy
import json
import shutil

import pytest
import torch

import ldm
from ldm import artifact
from ldm.adapters import lora
from ldm.commands import merge
from ldm.common.errors import UserError
from ldm.conditioning.text import tokenizer
from ldm.diffusion import V
from ldm.model.latent_diffusion import LatentDiffusion
from tests.adapters.models import equal, small


def varied(seed, like):
    """A fine-tuning of `like`: another denoiser and conditioner, the same first stage."""
    model = copy.deepcopy(like)
    torch.manual_seed(seed)
    for part in (model.denoiser, model.conditioner):
        for parameter in part.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of three runs of stage two, a, b and c."""
    folder, base = tmp_path_factory.mktemp("runs"), small()
    for name, model in {"a": base, "b": varied(1, base), "c": varied(2, base)}.items():
        keep(model, folder, name)
    return folder


@pytest.fixture
def runs(made, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(made, tmp_path / "runs")


def keep(model, runs, name):
    (runs / "ldm" / name).mkdir(parents=True)
    (runs / "ldm" / name / "config.yaml").write_text("name: null\n")
    ldm.save(model, runs / "ldm" / name / "model")


def with_parts(base, denoiser=None, conditioner=None):
    parts = base.first_stage, denoiser or base.denoiser, conditioner or base.conditioner
    return LatentDiffusion(*copy.deepcopy(parts), base.preprocess, base.sampling)


def merged(runs, *words, name="m"):
    merge.main([*words, f"name={name}", f"runs_dir={runs}", "overwrite=true"])
    return ldm.load(runs / "ldm" / name)


def state(runs, name):
    return ldm.load(runs / "ldm" / name).state_dict()


def test_1_and_0_are_the_first_bit_for_bit_and_halves_the_mean(runs):
    a, b = state(runs, "a"), state(runs, "b")
    assert equal(merged(runs, "run=a,b", "weights=1,0").state_dict(), a)
    assert equal(merged(runs, "run=a,b", "weights=0,1").state_dict(), b)
    for words in (["weights=0.5,0.5"], []):
        half = merged(runs, "run=a,b", *words).state_dict()
        assert all(torch.equal(half[n], ((a[n].double() + b[n].double()) / 2).float()) for n in a)
    assert not equal(a, b)


def test_a_difference_is_added_and_blocks_have_factors_of_their_own(runs):
    a, b, c = (state(runs, name) for name in "abc")
    made = merged(runs, "run=a,b,c", "difference=0.5", "blocks={mid_block: 0, up_blocks.*.conv1: 1}").state_dict()
    for name in a:
        factor = 0.0 if ".mid_block." in name else 1.0 if "up_blocks" in name and ".conv1." in name else 0.5
        if name.startswith(("first_stage", "latent_")):
            factor = 0.0
        wanted = (a[name].double() + factor * (b[name].double() - c[name].double())).float()
        torch.testing.assert_close(made[name], wanted, atol=1e-6, rtol=0)
    parts = merged(runs, "run=a,b", "weights=1,0", "blocks={mid_block: [0, 1]}").state_dict()
    assert all(torch.equal(parts[n], (b if ".mid_block." in n else a)[n]) for n in a)


def test_the_recipe_is_in_the_models_folder_with_hashes(runs):
    merged(runs, "run=a,b", "weights=0.25,0.75")
    recipe = json.loads((runs / "ldm" / "m" / "model" / "merge.json").read_text())
    assert recipe["weights"] == "0.25,0.75" and [one["path"][-1] for one in recipe["models"]] == ["a", "b"]
    assert [one["hash"] for one in recipe["models"]] == [
        artifact.model_hash(ldm.load(runs / "ldm" / name)) for name in "ab"
    ]


@pytest.mark.slow
def test_one_run_takes_loras_into_its_weights(runs):
    pytest.importorskip("peft")
    model = ldm.load(runs / "ldm" / "a")
    lora.start(model, "new", rank=2, alpha=None, wanted="attention", kind="dora")
    adapter = copy.deepcopy(lora.trained(model, "new", None, {}))
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    keep(adapter, runs, "style")
    wanted = ldm.load(runs / "ldm" / "a")
    wanted.load_lora(runs / "ldm" / "style", 0.8)
    wanted.merge_lora()
    made = merged(runs, "run=a", "lora=style:0.8")
    assert equal(made.state_dict(), wanted.state_dict()) and not equal(made.state_dict(), state(runs, "a"))
    recipe = json.loads((runs / "ldm" / "m" / "model" / "merge.json").read_text())
    assert recipe["loras"]["style"]["scale"] == 0.8


def test_models_that_differ_in_more_than_weights_are_refused_with_the_reason(runs):
    base = small()
    other_stage, whitened = copy.deepcopy(base), copy.deepcopy(base)
    other_stage.first_stage.encoder.conv_in.weight.data += 1
    whitened.latent_std.mul_(2)
    wide = small(width=16)
    wide.first_stage = base.first_stage
    other_kind = with_parts(base, denoiser=ldm.Denoiser(base.denoiser.network, V()))
    other_words = with_parts(
        base, conditioner=ldm.Conditioner({"text": ldm.Text(tokenizer.train(["b"], 260), 40, 8, heads=2)})
    )
    refused = {
        "different first stages": other_stage,
        "different parameterizations": other_kind,
        "whiten latents differently": whitened,
        "different conditions": other_words,
        r"different networks \(channels \[8, 16\] and \[16, 32\]": wide,
    }
    for number, (reason, model) in enumerate(refused.items()):
        keep(model, runs, f"other{number}")
        with pytest.raises(UserError, match=reason):
            merged(runs, f"run=a,other{number}")
        assert not (runs / "ldm" / "m").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["run=a,b", "weight=1,0"], "no option 'weight'. Did you mean 'weights'"),
        (["run=a,b", "weights=1,0", "weights=0,1"], "weights= is given twice"),
        (["run=a"], "several runs, or one run and lora="),
        (["run=a,b", "lora=x"], "several runs, or one run and lora="),
        (["run=a,b", "weights=0.5,0.6"], "add up to 1.1"),
        (["run=a,b", "weights=1"], "give 2 finite numbers"),
        (["run=a,b", "weights=nan,1"], "give 2 finite numbers"),
        (["run=a,b", "weights=one,0"], "give numbers"),
        (["run=a,b", "difference=1"], "takes three runs"),
        (["run=a,b", "blocks={mid_blok: [1, 0]}"], "no weight of the network matches 'mid_blok'.*'mid_block'"),
        (["run=a,b", "blocks={mid_block: [1, 1]}"], "blocks: mid_block=1, 1 add up to 2"),
        (["run=a,b", "blocks=[1"], "give numbers by pattern"),
        (["run=a,nowhere"], "no run 'nowhere'"),
        (["run=a", "lora=x", "weights=1"], "weights is for several runs"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, reason, runs):
    with pytest.raises(UserError, match=reason):
        merged(runs, *words)
    assert not (runs / "ldm" / "m").exists()


def test_a_run_that_is_there_is_kept(runs):
    with pytest.raises(UserError, match="exists: give overwrite=true"):
        merge.main(["run=a,b", "name=c", f"runs_dir={runs}"])


def test_a_trained_run_is_never_replaced_as_its_checkpoints_would_stay(runs):
    (runs / "ldm" / "c" / "checkpoints").mkdir()
    with pytest.raises(UserError, match="was trained.*another name="):
        merged(runs, "run=a,b", name="c")
