"""The tiny autoencoder: what it computes in strips, and sizes that make no network."""

import pytest
import torch

from ldm.common.errors import UserError
from ldm.networks import AutoencoderTiny
from ldm.networks.computing import strips
from ldm.networks.computing.coding import Coding


def tiny(**options) -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(1, 2, channels=4, **options).eval()


@torch.no_grad()
@pytest.mark.parametrize("blocks", [((1, 1), (1, 1)), ((1, 0, 2), (2, 1, 0))])
def test_strips_give_what_the_whole_network_gives(blocks):
    vae = tiny(encoder_blocks=blocks[0], decoder_blocks=blocks[1])
    f = vae.factor
    images, z = torch.randn(1, 1, 64 * f, 4 * f), torch.randn(1, 2, 64, 4)
    assert torch.allclose(vae.moments(images, strips.encoder(vae, 16 * f * f)), vae.moments(images), atol=1e-6)
    assert torch.allclose(vae.pixels(z, strips.decoder(vae, 64 * f)), vae.pixels(z), atol=1e-6)


@torch.no_grad()
def test_a_strip_reaches_as_far_as_the_network_sees():
    """Nothing beyond `reach` has an influence; one row less would be too few for the decoder."""
    vae = tiny(encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(parameter.abs() + 0.01)  # no ReLU is off
    z = torch.zeros(1, 2, 40, 3)
    z[:, :, 20] = 1
    changed = (vae.decoder(z) - vae.decoder(torch.zeros_like(z))).abs().amax((0, 1, 3)).view(40, 2).amax(1).nonzero()
    seen = (20 - changed.min().item(), changed.max().item() - 20)
    assert vae.reach["decoder"] - 2 <= max(seen) <= vae.reach["decoder"]
    images = torch.zeros(1, 1, 80, 4)
    images[:, :, 40] = 1
    changed = (vae.encoder(images) - vae.encoder(torch.zeros_like(images))).abs().amax((0, 1, 3)).nonzero()
    assert 40 - 2 * changed.min().item() <= vae.reach["encoder"]


@torch.no_grad()
def test_tiles_change_nothing():
    vae = tiny(encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    z = torch.randn(1, 2, 48, 8)
    torch.testing.assert_close(Coding(tile=16).decode(vae, z), vae.decode(z), atol=1e-6, rtol=1e-6)


def test_sizes_that_make_no_network_are_refused():
    with pytest.raises(UserError, match="2 levels of encoder_blocks and 1 of decoder_blocks"):
        AutoencoderTiny(encoder_blocks=(1, 1), decoder_blocks=(1,))
    with pytest.raises(UserError, match="each has to be at least 1"):
        AutoencoderTiny(channels=0)
    assert tiny().factor == 8 and not tiny().encode(torch.zeros(1, 1, 8, 8)).std.any()
