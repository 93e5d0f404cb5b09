"""A model's weights stay in float32, and are finite."""

import copy

import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.networks.computing.finite import is_finite
from tests.adapters.models import generated_latents, small


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.half(), 'not torch.float16.*autocast."cpu", torch.float16'),
        (lambda m: m.bfloat16(), 'not torch.bfloat16.*autocast."cpu", torch.bfloat16'),
        (lambda m: m.to(torch.bfloat16), "not torch.bfloat16"),
        (lambda m: m.to("meta", torch.float16), 'autocast."meta", torch.float16'),
        (lambda m: m.double(), "not torch.float64"),
        (lambda m: torch.nn.ModuleList([m]).half(), "a LatentDiffusion's weights stay in float32"),
    ],
)
def test_another_precision_is_refused_with_the_way_to_have_it_and_nothing_changes(model, change, message):
    with pytest.raises(UserError, match=message):
        change(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.latent_mean.device.type == "cpu"


def test_moving_and_float32_are_as_ever(model):
    for same in (model.to("cpu"), model.float(), model.to(torch.float32), model.to(memory_format=torch.channels_last)):
        assert same is model
    assert {p.device.type for p in copy.deepcopy(model).to("meta").parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_way_that_it_names_works(model, dtype):
    wanted = generated_latents(model, steps=4)
    with torch.autocast("cpu", dtype):
        got = generated_latents(model, steps=4)
    assert got.dtype == torch.float32 and not torch.equal(got, wanted)
    torch.testing.assert_close(got, wanted, atol=0.05 * wanted.abs().max().item(), rtol=0)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_what_isnt_finite_is_seen_in_every_precision(value, dtype):
    tensor = torch.tensor([1.0, float(value), -2.0]).to(dtype)
    assert is_finite(tensor[::2]) and is_finite(tensor[:0]) and is_finite(torch.tensor([1, 2]))
    # float8_e4m3fn has no infinity: torch 2.9 makes its NaN of one, later ones its largest number.
    seen = dtype != torch.float8_e4m3fn or not tensor.float().isfinite().all()
    assert is_finite(tensor) != seen


@pytest.mark.parametrize("name", ["first_stage.decoder.conv_in.weight", "denoiser.network.conv_in.bias", "latent_std"])
def test_a_model_whose_weights_arent_finite_isnt_loaded(name, tmp_path):
    model = small()
    model.state_dict()[name][0].fill_(float("nan"))
    with pytest.raises(UserError, match=f"{name} isn't finite: training diverged or the file is damaged"):
        ldm.load(ldm.save(model, tmp_path / "model"))
