"""Latents that are good, collapsed, and unbounded: each is named as such."""

from typing import Any

import pytest
import torch

from ldm.data.storage.table import Table
from ldm.evaluation.measures.latent_statistics import LatentStatistics, autocorrelation, latent_statistics
from ldm.evaluation.verdict import judge
from ldm.networks import AutoencoderKL, Gaussian


def posteriors(scale: float = 1.0, std: float = 0.1, n: int = 200, channels: int = 3) -> list[Gaussian]:
    generator = torch.Generator().manual_seed(0)
    mean = scale * torch.randn(n, channels, 4, 4, generator=generator)
    return [Gaussian(part, torch.full_like(part, std)) for part in mean.split(64)]


def test_statistics_are_their_definitions() -> None:
    found = latent_statistics(posteriors(2.0, 0.5))
    mean = torch.cat([p.mean for p in posteriors(2.0, 0.5)]).double()
    expected = 0.5 * (mean.square() + 0.25 - torch.log(torch.tensor(0.25)) - 1).mean((0, 2, 3))
    assert found.kl.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert found.std.tolist() == pytest.approx([(4 + 0.25) ** 0.5] * 3, rel=0.05)
    assert found.active.tolist() == [1, 1, 1] and found.images == 200
    assert found.extreme == pytest.approx(float(mean.abs().max()))


def test_autocorrelation_of_noise_and_of_smooth_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 2, 8, 8, generator=generator)
    assert autocorrelation(noise).abs().max() < 0.05
    flat = torch.randn(400, 2, 1, 1, generator=generator).expand(-1, -1, 8, 8)
    assert autocorrelation(flat).min() > 0.99
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1).expand(4, 1, 8, 8)
    assert autocorrelation(board)[:2].tolist() == pytest.approx([-1, 1])
    assert autocorrelation(torch.zeros(2, 1, 1, 1)).shape == (0,)


def verdict_of(found: LatentStatistics, psnr: float = 25.0) -> str:
    return str(judge(found, psnr, 12.0))


def test_sound_latents_pass() -> None:
    assert verdict_of(latent_statistics(posteriors())) == "pass: stage two can start"


def test_stable_diffusion_s_latents_pass() -> None:
    """Std 5.5 and posteriors of about 3e-4: a KL weight of 1e-6 is no failure."""
    assert verdict_of(latent_statistics(posteriors(5.5, 3e-4))).startswith("pass")


def test_some_collapsed_channels_are_noted_and_half_of_them_fail() -> None:
    alive, dead = posteriors(channels=3), posteriors(0.0, 1.0, channels=1)
    mixed = [
        Gaussian(torch.cat([a.mean, d.mean], 1), torch.cat([a.std, d.std], 1)) for a, d in zip(alive, dead, strict=True)
    ]
    assert verdict_of(latent_statistics(mixed)) == "pass: stage two can start, with notes: posterior collapse"
    assert verdict_of(latent_statistics(dead)).startswith("fail: posterior collapse")


@pytest.mark.parametrize(("scale", "std"), [(50.0, 0.1), (1000.0, 1e-3)])
def test_large_latents_are_unbounded(scale: float, std: float) -> None:
    assert verdict_of(latent_statistics(posteriors(scale, std))).startswith("fail: unbounded latents")


def test_a_training_without_kl_term_is_named_before_it_blows_up() -> None:
    assert str(judge(latent_statistics(posteriors()), 25, 12, beta=0)).endswith("with notes: unbounded latents")
    assert str(judge(latent_statistics(posteriors(50.0)), 25, 12, beta=0)).startswith("fail: unbounded latents")


def test_a_single_far_value_is_unbounded() -> None:
    some = posteriors(n=2000)
    some[0].mean[3, 1, 2, 2] = 120.0
    assert verdict_of(latent_statistics(some)).startswith("fail: unbounded latents")


def test_nan_is_named() -> None:
    some = posteriors()
    some[0].mean[0] = float("nan")
    assert "latents that aren't finite" in verdict_of(latent_statistics(some))


def test_a_decoder_that_answers_the_mean_image_fails() -> None:
    assert verdict_of(latent_statistics(posteriors()), psnr=12.1).startswith("fail: a decoder that ignores its latents")


def trained(table: Table, beta: float, steps: int, noise: float = 1.0) -> LatentStatistics:
    """An autoencoder of digits after `steps` of stage one's loss, with a large learning rate: what takes it hours
    otherwise."""
    torch.manual_seed(0)
    vae: Any = AutoencoderKL(1, 2, channels=[16], stem=4, shortcut=True)
    images = table.batch(torch.arange(512).numpy(), ["image"])["image"]
    vae.start_from_principal_components(images)
    optimizer = torch.optim.Adam(vae.parameters(), 0.02)
    for step in range(steps):
        x = images[torch.arange(32 * step, 32 * step + 32) % 512]
        decoded, posterior = vae(x, noise * torch.randn(32, 2, 4, 4))
        loss = (decoded - x).square().mean() + beta * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return latent_statistics(vae.encode(part) for part in images.split(128))


def test_beta_far_too_high_is_named_collapse(digits: tuple[Table, Table]) -> None:
    assert "posterior collapse" in verdict_of(trained(digits[0], beta=30.0, steps=60))
    assert "posterior collapse" not in verdict_of(trained(digits[0], beta=1e-3, steps=60))
