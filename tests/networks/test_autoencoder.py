"""The autoencoder: parity with diffusers, the stem, the posterior's closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from ldm.common.errors import UserError
from ldm.networks import AutoencoderKL, Gaussian, Identity

PARITY = {
    "f4 with attention": {"in_channels": 3, "channels": [16, 32, 32], "blocks": 2, "attention": True, "groups": 8},
    "f2 without": {"in_channels": 1, "latent_channels": 3, "channels": [16, 24], "blocks": 1, "groups": 4},
    "f1, five channels": {"in_channels": 5, "channels": [16], "blocks": 1, "attention": True, "groups": 16},
}


@torch.no_grad()
@pytest.mark.parametrize("options", PARITY.values(), ids=PARITY.keys())
def test_parity_with_diffusers(options):
    from diffusers import AutoencoderKL as Theirs

    levels = len(options["channels"])
    torch.manual_seed(0)
    reference = Theirs(
        in_channels=options["in_channels"],
        out_channels=options["in_channels"],
        latent_channels=options.get("latent_channels", 4),
        block_out_channels=options["channels"],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=options["blocks"],
        norm_num_groups=options["groups"],
        mid_block_add_attention=options.get("attention", False),
    ).eval()
    for parameter in reference.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    ours = AutoencoderKL(**options).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)  # the names are the same

    images = torch.randn(2, options["in_channels"], 12, 8)
    posterior, wanted = ours.encode(images), reference.encode(images).latent_dist
    assert wanted.mean.std() > 0.1
    torch.testing.assert_close(posterior.mean, wanted.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(posterior.std, wanted.std, atol=1e-5, rtol=1e-5)
    decoded = reference.decode(wanted.mean).sample
    torch.testing.assert_close(ours.decode(posterior.mode()), decoded, atol=1e-5, rtol=1e-5)
    noise = torch.randn_like(posterior.mean)
    image, _ = ours(images, noise)
    torch.testing.assert_close(image, reference.decode(wanted.mean + wanted.std * noise).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"multipliers": (1,)}, 1),
        ({"multipliers": (1, 1)}, 2),
        ({"multipliers": (1, 2), "stem": 2, "in_channels": 1}, 4),
        ({"multipliers": (1, 1, 1), "stem": 2, "in_channels": 5}, 8),
        ({"multipliers": (1,), "stem": 4, "in_channels": 2}, 4),
        ({"multipliers": (1, 1, 1, 1, 1)}, 16),
    ],
)
@torch.no_grad()
def test_any_factor_any_channels_any_size(options, factor):
    vae = AutoencoderKL(**{"channels": 8, "latent_channels": 3, **options}).eval()
    images = torch.randn(2, vae.in_channels, 2 * factor, 3 * factor)
    assert vae.factor == factor
    posterior = vae.encode(images)
    assert posterior.mean.shape == posterior.std.shape == (2, 3, 2, 3)
    assert vae.decode(posterior.mean).shape == images.shape


@torch.no_grad()
def test_the_stem_only_moves_pixels():
    options = {"latent_channels": 2, "channels": 8, "multipliers": (1, 2)}
    stem, plain = AutoencoderKL(3, stem=2, **options).eval(), AutoencoderKL(12, **options).eval()
    for parameter in stem.parameters():
        parameter.normal_(std=0.2)
    plain.load_state_dict(stem.state_dict())
    images = torch.randn(2, 3, 8, 12)
    moved = plain.encode(F.pixel_unshuffle(images, 2))
    torch.testing.assert_close(stem.encode(images).mean, moved.mean)
    torch.testing.assert_close(stem.decode(moved.mean), F.pixel_shuffle(plain.decode(moved.mean), 2))


@torch.no_grad()
def test_shortcuts_start_as_the_best_linear_autoencoder():
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(64, 2, 20, 20), 5, stride=1)  # (64, 2, 16, 16), smooth
    vae = AutoencoderKL(2, 3, channels=8, multipliers=(1, 1), stem=2, shortcut=True).eval()
    vae.start_from_principal_components(images)
    posterior = vae.encode(images)
    latents = posterior.mean.movedim(1, -1).flatten(0, 2)  # (N, 3)
    torch.testing.assert_close(latents.T.cov(), torch.eye(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, math.exp(-2.5)))

    patches = F.pixel_unshuffle(images, 4).movedim(1, -1).flatten(0, 2).double()  # (N, 32)
    lost = torch.linalg.svdvals(patches - patches.mean(0))[3:].square().sum() / patches.numel()
    error = (vae.decode(posterior.mean) - images).square().mean()
    assert error.item() == pytest.approx(lost.item(), rel=1e-4)


def test_the_draw_is_mean_plus_std_times_noise_and_lets_gradients_through():
    mean, std = torch.randn(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 4, 4, requires_grad=True)
    noise = torch.randn(2, 3, 4, 4)
    draw = Gaussian(mean, std).sample(noise)
    torch.testing.assert_close(draw, mean + std * noise)
    draw.sum().backward()
    assert torch.equal(mean.grad, torch.ones_like(mean))
    assert torch.equal(std.grad, noise)


def test_draws_have_the_posteriors_mean_and_std():
    torch.manual_seed(0)
    moments = torch.tensor([0.7, -2.0, 0.3, -1.5]).view(1, 4, 1, 1)  # two means, two log-variances
    posterior = Gaussian.from_moments(moments.expand(20_000, 4, 1, 1))
    draws = posterior.sample().flatten(1)  # (N, 2)
    std = torch.tensor([0.3, -1.5]).div(2).exp()
    assert ((draws.mean(0) - torch.tensor([0.7, -2.0])).abs() < 5 * std / 20_000**0.5).all()
    assert ((draws.std(0) / std - 1).abs() < 5 / 40_000**0.5).all()
    assert torch.equal(posterior.mode(), posterior.mean)


def test_the_kl_is_that_of_two_normals():
    torch.manual_seed(0)
    posterior = Gaussian.from_moments(torch.randn(3, 8, 2, 2) * 3)
    wanted = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0, 1))
    torch.testing.assert_close(posterior.kl(), wanted, atol=1e-5, rtol=1e-5)
    standard = Gaussian(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert standard.kl().item() == 0


def test_extreme_log_variances_stay_finite():
    moments = torch.tensor([0.0, 0.0, -1e4, 1e4]).view(1, 4, 1, 1).requires_grad_()
    posterior = Gaussian.from_moments(moments)
    loss = posterior.kl().sum() + posterior.sample().sum()
    loss.backward()
    assert loss.isfinite() and moments.grad.isfinite().all()


@pytest.mark.parametrize(("height", "width", "fit"), [(10, 8, "12x8"), (8, 9, "8x12"), (3, 3, "4x4")])
def test_a_size_that_cannot_be_halved_is_refused_with_one_that_can(height, width, fit):
    vae = AutoencoderKL(1, channels=8, multipliers=(1, 1), stem=2)
    with pytest.raises(UserError, match=rf"{height}x{width} isn't divisible .*factor 4.*{fit}"):
        vae.encode(torch.zeros(1, 1, height, width))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": 3}, "vae.stem=3"),
        ({"stem": 0}, "vae.stem=0"),
        ({"latent_channels": 0}, "0 latent channels"),
        ({"channels": [8, 12]}, r"widths \[12\].* 8 groups"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        AutoencoderKL(3, **options)


def test_the_identity_is_one():
    images = torch.randn(2, 3, 5, 7)
    stage = Identity(3)
    posterior = stage.encode(images)
    assert (stage.factor, stage.latent_channels) == (1, 3)
    assert torch.equal(stage.decode(posterior.sample()), images)
    assert not posterior.std.any()
