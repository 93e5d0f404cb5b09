"""The codebook: nearest codes, the straight-through gradient, where codes start, and what depends on them."""

import pytest
import torch

from ldm.artifact import encoder_hash
from ldm.common.errors import UserError
from ldm.networks import VQModel
from ldm.networks.computing.coding import Coding
from ldm.networks.first_stages import vq


@pytest.fixture
def vae() -> VQModel:
    torch.manual_seed(0)
    made = VQModel(1, 2, codes=4, channels=8, multipliers=[1, 1], groups=4)
    with torch.no_grad():
        made.quantize.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    return made


def test_each_position_takes_the_nearest_code_whatever_the_part_it_is_computed_in(vae, monkeypatch):
    z = torch.tensor([[0.9, 0.2], [0.1, 0.7], [-3.0, -2.0], [0.2, -0.4]]).view(1, 2, 2, 2).movedim(-1, 1)
    assert vae.indices(z).flatten().tolist() == [1, 2, 3, 0]
    assert vae.quantised(z)[0, :, 1, 0].tolist() == [-1, -1]
    whole = vae.indices(torch.randn(2, 2, 5, 3))
    monkeypatch.setattr(vq, "MOST_DISTANCES", 8)  # two positions at once
    torch.manual_seed(0)
    again = torch.randn(2, 2, 5, 3)
    one = vae.indices(again)
    distances = (again.movedim(1, -1)[..., None, :] - vae.quantize.embedding.weight).square().sum(-1)
    assert one.shape == whole.shape and torch.equal(one, distances.argmin(-1))


def test_the_gradient_passes_the_codebook_as_if_it_were_not_there(vae):
    z = torch.randn(1, 2, 3, 3, requires_grad=True)
    quantised = vae.quantised(z)
    assert torch.equal(quantised, vae.quantize.vectors(vae.indices(z)))
    weights = torch.randn_like(quantised)
    (quantised * weights).sum().backward()
    assert torch.equal(z.grad, weights) and vae.quantize.embedding.weight.grad is None


def test_values_that_arent_numbers_stay_so(vae):
    z = torch.zeros(1, 2, 1, 2)
    z[..., 1] = torch.nan
    assert vae.quantised(z).isnan().tolist() == [[[[False, True]]] * 2]


def test_latents_are_those_before_the_codebook_and_decoding_begins_with_it(vae):
    images = torch.randn(2, 1, 8, 8)
    posterior = vae.encode(images)
    assert not posterior.std.any() and torch.equal(posterior.mode(), vae.moments(images))
    wanted = vae.pixels(vae.quantised(posterior.mode()))
    assert torch.equal(vae.decode(posterior.mode()), wanted)
    assert torch.equal(vae.decode(vae.quantised(posterior.mode())), wanted)


def test_codes_are_chosen_in_float32_whatever_the_network_computes_in(vae):
    with torch.no_grad():
        vae.quantize.embedding.weight.copy_(torch.tensor([[256, 0], [258, 0.5], [9, 9], [8, 8]]))
    seen = []
    vae.pixels = lambda z, decoder=None: seen.append(z) or z
    Coding("bfloat16").decode(vae, torch.tensor([257.05, 0.0]).view(1, 2, 1, 1))  # bfloat16 would make it 258
    assert seen[0].dtype == torch.bfloat16 and seen[0].flatten().tolist() == [256, 0]


@pytest.mark.parametrize("shortcut", [False, True])
def test_codes_start_at_latents_of_the_images_and_no_two_are_equal(shortcut):
    torch.manual_seed(0)
    vae = VQModel(1, 2, codes=24, channels=8, multipliers=[1, 1], groups=4, shortcut=shortcut)
    images = torch.randn(4, 1, 8, 8)
    images[0] = 0  # its inner positions are alike
    vae.start_from(images)
    codes = vae.quantize.embedding.weight
    latents = vae.encode(images).mode().movedim(1, -1).flatten(0, 2)
    assert (codes[:, None] - latents).abs().amax(2).amin(1).max() < 1e-5
    assert len(codes.unique(dim=0)) == 24 and vae.indices(vae.encode(images).mode()).unique().numel() == 24
    flat = VQModel(1, 2, codes=24, channels=8, multipliers=[1, 1], groups=4)
    flat.start_from(torch.zeros(1, 1, 8, 8))  # fewer latents than codes
    assert flat.quantize.embedding.weight.isfinite().all()


def test_random_codes_are_the_prior(vae):
    latents = vae.prior(torch.randn(64, 2, 4, 4))
    share = torch.bincount(vae.indices(latents).flatten(), minlength=4) / 1024
    assert torch.equal(latents, vae.quantised(latents)) and (share - 0.25).abs().max() < 0.06


def test_latents_depend_on_the_encoder_and_not_on_the_codes(vae):
    before = encoder_hash(vae)
    with torch.no_grad():
        vae.quantize.embedding.weight += 1
    assert encoder_hash(vae) == before and "quantize.embedding.weight" in vae.weights_of(vae.DECODING)
    with torch.no_grad():
        vae.quant_conv.bias += 1
    assert encoder_hash(vae) != before
    vae.freeze_encoder()
    assert {name.partition(".")[0] for name, p in vae.named_parameters() if p.requires_grad} == {
        "decoder",
        "post_quant_conv",
    }


def test_what_has_no_codebook_or_no_spread_is_refused(vae):
    with pytest.raises(UserError, match="codes=1: a codebook needs at least 2"):
        VQModel(codes=1)
    with pytest.raises(UserError, match="VQModel has one latent for each image, and so no variants"):
        vae.augment(torch.zeros(1, 1, 8, 8))
    assert vae.augment(torch.zeros(1, 1, 8, 8), temperature=0).shape == (1, 1, 1, 8, 8)
    assert vae.facts()["codebook"] == "4 codes"
