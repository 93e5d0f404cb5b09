"""Previews: by the model's own decoder, or by a small one that reads latents as diffusers scales them."""

import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.networks import AutoencoderTiny
from tests.model.test_pipeline import make


@pytest.fixture
def taesd(tmp_path):
    torch.manual_seed(1)
    ldm.save(AutoencoderTiny(1, 2, channels=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1)), tmp_path / "tiny")
    return tmp_path / "tiny"


@torch.no_grad()
def test_a_preview_is_decoded_by_the_preview_decoder_and_images_are_not(taesd):
    model, z = make(), torch.randn(2, 2, 4, 4)
    model.latent_std.fill_(3.0)
    images = model.decode(z)
    assert torch.equal(model.preview(z), images)
    before = set(model.state_dict())
    model.load_preview_decoder(taesd)
    small = ldm.load(taesd)
    assert torch.equal(model.preview(z), small.decode(z).clamp(-1, 1))  # of latents as the denoiser sees them
    assert torch.equal(model.decode(z), images) and set(model.state_dict()) == before


@torch.no_grad()
def test_both_first_stages_scales_are_obeyed(taesd):
    model, z = make(), torch.randn(2, 2, 4, 4)
    model.latent_mean.fill_(0.5)
    model.latent_std.copy_(torch.tensor([2.0, 4.0]))
    model.first_stage.scaling = ([0.0, 0.0], [5.0, 5.0])  # of the file that it came from
    model.load_preview_decoder(taesd)
    model.previewer[0].scaling = ([0.1, 0.1], [0.5, 0.5])
    scaled = (z * torch.tensor([2.0, 4.0])[:, None, None] + 0.5) / 5
    wanted = model.previewer[0].decode(scaled * 0.5 + 0.1).clamp(-1, 1)
    torch.testing.assert_close(model.preview(z), wanted)


def test_a_decoder_of_other_latents_is_refused(tmp_path):
    ldm.save(AutoencoderTiny(1, 4, channels=4), tmp_path / "other")
    with pytest.raises(UserError, match="reads 4 channels at 1/8 .* this model's latents have 2 channels at 1/2"):
        make().load_preview_decoder(tmp_path / "other")
